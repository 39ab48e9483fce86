import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fmscale.kernels.bench import command, report
from fmscale.kernels.bench.ceilings import Ceilings, measure_ceilings
from fmscale.kernels.bench.claims import TARGETS, Target, assemble, claim, judge
from fmscale.kernels.bench.command import all_rows, main, measure
from fmscale.kernels.bench.contest import Contest, Contestant, Row, Run, hold, unmeasured
from fmscale.kernels.bench.roofline import roofline
from fmscale.kernels.bench.sizes import FULL, Sizes
from fmscale.kernels.bench.timing import WallClock, interleave
from fmscale.kernels.bench.tune import tune
from fmscale.kernels.bench.verdict import worse, wrong
from fmscale.kernels.launch import TRITON_VERSION

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Sizes(
    tokens=32, lengths=(32,), heads=2, kv_heads=1, mean_document=9, window=12, window_length=32, rows=6,
    hidden=64, ffn=96, loss_tokens=12, vocabulary=70, parameters=500, checked_parameters=300,
    plane_elements=1000, dtype=torch.float32,
)  # fmt: skip


class Ticks:
    """A clock that answers from a script instead of waiting: seconds by the function's name."""

    def __init__(self, **seconds: float) -> None:
        self.seconds_of = seconds
        self.calls: list[str] = []

    def seconds(self, function: Callable[[], object]) -> float:
        self.calls.append(str(function()))
        return self.seconds_of[self.calls[-1]]


def row(id: str = "RMSNorm fwd", **makers: Callable[[], Contestant]) -> Row:
    right = [torch.arange(1.0, 4.0)]
    return Row(
        id=id, variant="tiny", unit="TB/s", flops=1e12, bytes=2e12,
        build=lambda _: Contest(makers=makers, reference=lambda: right),
    )  # fmt: skip


def contestant(name: str, *numbers: float) -> Callable[[], Contestant]:
    return lambda: Contestant(run=lambda: name, numbers=lambda: [torch.tensor(numbers)])


def test_numbers_are_checked_before_the_time_is_taken() -> None:
    clock = Ticks(ours=2.0, good=1.0)
    run = hold(
        row(
            ours=contestant("ours", 1, 2, 3), good=contestant("good", 1, 2, 3.01),
            wrong=contestant("wrong", 1, 2, 4), nan=contestant("nan", 1, 2, float("nan")),
            short=contestant("short", 1, 2), absent=lambda: pytest.importorskip,  # type: ignore[return-value,dict-item]
        ),
        CPU, clock, repeats=3,
    )  # fmt: skip
    assert set(clock.calls) == {"ours", "good"}
    assert run.rates == {"ours": 1.0, "good": 2.0}
    assert set(run.reasons) == {"wrong", "nan", "short", "absent"}
    assert "off by 0.267" in run.reasons["wrong"]
    assert "shape (2,) instead of (3,)" in run.reasons["short"]
    assert run.reasons["absent"].startswith("AttributeError")


def test_contestants_take_turns_in_alternating_order() -> None:
    clock = Ticks(a=1.0, b=2.0, c=3.0)
    names = {name: (lambda name=name: name) for name in "abc"}
    times, failed = interleave(names, clock, repeats=3, warmup=1)
    assert "".join(clock.calls) == "abccbaabccba"
    assert {name: t.median for name, t in times.items()} == clock.seconds_of
    assert [t.repeats for t in times.values()] == [3, 3, 3]
    assert not failed


def test_one_that_fails_while_it_is_timed_leaves_the_others() -> None:
    def broken() -> None:
        raise RuntimeError("illegal\n  memory access")

    times, failed = interleave({"a": lambda: "a", "bad": broken}, Ticks(a=1.0), repeats=2)
    assert set(times) == {"a"}
    assert failed == {"bad": "RuntimeError: illegal memory access"}


def run_of(id: str = "x", flops: float = 1.0, **rates: float) -> Run:
    times = {name: {"median": flops / rate / 1e12} for name, rate in rates.items()}
    return Run(
        id=id, variant="", unit="TFLOP/s", intensity=10.0, flops=flops, rates=rates, times=times,
        reasons={} if "ours" in rates else {"ours": "wrong"},
    )  # fmt: skip


TARGET = Target(id="x", what="x", limit="matmul", must={"flash": 1.25, "flex": 1.0})


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([run_of(ours=5.0, flash=4.0, flex=5.0)], True),
        ([run_of(ours=4.9, flash=4.0, flex=4.0)], False),
        ([run_of(ours=5.0, flash=4.0)], None),  # a peer that did not run cannot be beaten
        ([run_of(ours=3.0, flash=4.0)], False),
        ([run_of(ours=5.0, flash=4.0, flex=5.0), run_of(ours=1.0, flash=1.0, flex=1.0)], False),
        ([run_of(flash=4.0, flex=4.0)], False),  # ours was wrong where others ran
        ([unmeasured(row("x"), "no GPU")], None),
        ([], None),
    ],
)
def test_a_claim_is_ok_only_where_every_row_shows_it(runs: list[Run], verdict: bool | None) -> None:
    assert judge(TARGET, runs) is verdict


def test_an_upper_limit_counts() -> None:
    target = Target(id="x", what="x", limit="matmul", at_most={"extra GiB": 1.0})
    for extra, verdict in ((0.6, True), (1.1, False)):
        run = Run(
            id="x", variant="", unit="TFLOP/s", intensity=1.0, flops=1.0, rates={"ours": 1.0},
            extra={"extra GiB": extra},
        )  # fmt: skip
        assert judge(target, [run]) is verdict


def test_a_claim_in_the_schema() -> None:
    got = claim(TARGET, [run_of(ours=5.0, flash=4.0)], Ceilings(copy=4.0, matmul=20.0))
    assert {"id", "what", "unit", "ours", "peers", "limit", "ratio", "target", "ok", "runs"} <= set(got)
    assert (got["ours"], got["limit"], got["ratio"], got["ok"]) == (5.0, 20.0, 0.25, None)
    assert got["peers"] == {"flash": 4.0, "flex": None}
    assert got["reasons"] == {"flex": "not tried"}
    assert got["target"] == ">= 1.25 x flash; >= 1 x flex"
    json.dumps(got)


def test_every_row_has_a_target_and_every_target_a_row() -> None:
    assert {r.id for r in all_rows(FULL)} == {t.id for t in TARGETS}
    assert [c["id"] for c in assemble([], None)] == [t.id for t in TARGETS]


@pytest.mark.parametrize("problem", all_rows(TINY), ids=lambda r: f"{r.id} {r.variant}")
def test_the_real_rows_give_right_numbers(problem: Row) -> None:
    """Ours and torch eager through the same code as on a GPU, tiny and interpreted."""
    run = hold(problem, CPU, WallClock(), repeats=1, warmup=0, only={"ours", "eager", "torch fused + copy"})
    assert not run.reasons, run.reasons
    assert run.rates["ours"] > 0
    assert {len(run.times), len(run.rates)} <= {1, 2}


def test_full_sizes_count_the_operations_of_the_convention() -> None:
    rows = {(r.id, r.variant): r for r in all_rows(FULL)}
    forward = rows["forward causal E=128", "T=8192"]
    assert forward.flops == 4 * 2 * 32 * 8192**2 * 128 / 2
    assert rows["backward causal E=128, deterministic", "T=8192"].flops == 2.5 * forward.flops
    assert rows["AdamW partition", "n=1e+09"].bytes == 28e9
    assert rows["RMSNorm bwd", ""].bytes == 3 * 16384 * 4096 * 2
    assert rows["fused linear CE fwd+bwd", "V=128256"].flops == 6 * 8192 * 4096 * 128256


def test_a_spent_budget_is_said() -> None:
    runs = measure([row(ours=contestant("ours", 1, 2, 3))], CPU, Ticks(), repeats=1, budget=-1.0, say=print)
    assert not runs[0].rates
    assert "time budget" in runs[0].reasons["ours"]


def test_a_row_that_cannot_be_built_is_said() -> None:
    def build(_: torch.device) -> Contest:
        raise torch.OutOfMemoryError("too large")

    broken = Row(id="RMSNorm fwd", variant="", unit="TB/s", flops=1.0, bytes=1.0, build=build)
    runs = measure([broken], CPU, Ticks(), repeats=1, budget=1e9, say=lambda _: None)
    assert runs[0].reasons == {"ours": "OutOfMemoryError: too large"}


def test_ceilings() -> None:
    got = measure_ceilings(CPU, WallClock(), copy_bytes=2**20, side=64, repeats=3)
    assert got.copy > 0
    assert got.matmul > 0


def test_the_plot_shows_every_run_and_both_ceilings() -> None:
    runs = [run_of(ours=5.0, flash=7.0), run_of(ours=0.4), run_of(flash=7.0)]
    svg = ElementTree.fromstring(roofline(runs, Ceilings(copy=4.0, matmul=800.0), "H200 & co"))
    circles = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 3  # two of ours, and the peer that was faster
    texts = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"copy 4.00 TB/s", "matmul 800 TFLOP/s", "H200 & co"} <= set(texts)
    for circle in circles:
        assert 0 < float(circle.get("cx", "")) < 900
        assert 0 < float(circle.get("cy", "")) < 560


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_estimated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path), "--json"]) == 2
    said = capsys.readouterr()
    outcome = json.loads(said.out)
    assert outcome["name"] == "kernels"
    assert outcome["versions"]["triton"] == TRITON_VERSION
    assert len(outcome["claims"]) == len(TARGETS)
    for one in outcome["claims"]:
        assert one["ours"] is one["limit"] is one["ratio"] is one["ok"] is None
        assert not any(one["peers"].values())
        assert "no CUDA device" in one["reasons"]["ours"]
    assert "nothing was measured: no CUDA device" in said.err
    assert not list(tmp_path.iterdir())
    assert main(["--tune"]) == 2
    assert main([]) == 2
    assert "RMSNorm fwd: not measured  [not decided]" in capsys.readouterr().out


def test_the_table_shows_losing_rows_and_reasons() -> None:
    runs = [run_of("forward causal E=64", ours=1.0, flash=4.0)]
    text = report.table(report.result(assemble(runs, Ceilings(copy=4.0, matmul=20.0)), quick=True, extra={}))
    assert "forward causal E=64: 1 TFLOP/s, 5% of the limit  [MISSED]" in text
    assert "ours 1, flash 4" in text


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for op in ("attention", "rms_norm", "adamw_step"):
        assert f"  {op}: " in out
    assert f"Triton {TRITON_VERSION}" in out


@pytest.mark.parametrize("judge_numbers", [wrong, lambda a, b: worse(a, b, [t.double() for t in b])])
def test_a_small_systematic_error_is_wrong(judge_numbers: Callable[..., str | None]) -> None:
    exact = [torch.randn(4096)]
    assert judge_numbers(exact, exact) is None
    assert judge_numbers([exact[0] * 1.03], exact) is not None
    assert judge_numbers([exact[0].where(exact[0] > -9, torch.nan)], exact) is None
    assert judge_numbers([torch.full_like(exact[0], torch.nan)], exact) is not None


def test_tuning_rejects_wrong_refused_and_crashing_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    versions = {"triton": "3.6.0", "ptxas": "12.8"}
    table = tune("tests.kernels.tuning_problems", "cpu", versions, lambda _: None)
    (entry,) = table.entries
    assert (entry.op, entry.bucket, entry.backend) == ("twice", "tiny", "triton")
    assert entry.configs == {"forward": {"kind": 0}}
    assert set(entry.milliseconds) == {"triton", "eager"}  # the third backend's numbers were wrong
    assert entry.milliseconds["triton"] < entry.milliseconds["eager"]
    reasons = {r["config"]["kind"]: r["reason"] for r in table.rejected}
    assert "error" in reasons[1]
    assert "out of resource" in reasons[2]
    assert reasons[3] == "crashed: exit status 17"
    assert set(reasons) == {1, 2, 3}
    assert all((r["triton"], r["ptxas"]) == ("3.6.0", "12.8") for r in table.rejected)
    assert (table.gpu, table.triton) == ("cpu", "3.6.0")


@pytest.mark.slow
def test_a_configuration_that_hangs_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    versions = {"triton": "3.6.0", "ptxas": "12.8"}
    table = tune("tests.kernels.hanging_problems", "cpu", versions, lambda _: None, patience=20.0)
    assert [r["reason"] for r in table.rejected] == ["no answer within 20 s"]
    assert [e.backend for e in table.entries] == ["eager"]


def test_the_real_tuning_problems_name_real_configurations() -> None:
    """Every kernel named there is one whose configuration the op asks for under that name and bucket."""
    from fmscale.kernels.bench.problems import problems

    seen = {(p.op, p.bucket) for p in problems()}
    assert len(seen) == len(problems())
    for problem in problems():
        assert problem.kernels
        assert all(choices for choices in problem.kernels.values())


@pytest.mark.gpu
def test_quick_run_on_a_device(tmp_path: Path) -> None:
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    outcome = json.loads((tmp_path / "kernels.quick.json").read_text())
    assert all(one["ours"] for one in outcome["claims"])
    assert (tmp_path / "kernels.quick_roofline.svg").exists()
    assert command.BUDGET[True] < 180
