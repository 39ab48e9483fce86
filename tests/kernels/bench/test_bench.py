"""Contests: a row under a scripted clock, the real rows on a CPU, and their run in a worker."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels import command, contests, rows
from benchmarks.kernels.attention_rows import attention_rows
from benchmarks.kernels.ceilings import Ceilings, measure_ceilings
from benchmarks.kernels.claims import TARGETS, assemble
from benchmarks.kernels.contest import Contest, Contestant, ContestRow, Run, hold, unmeasured
from benchmarks.kernels.contests import Budget, measure
from benchmarks.kernels.rows import all_rows
from benchmarks.kernels.sizes import FULL, Sizes
from benchmarks.kernels.timing import SLOW, SPENT, DeviceBroken, WallClock, interleave
from benchmarks.kernels.verdict import worse, wrong
from benchmarks.kernels.workshop import Workshop

ROOT = Path(__file__).parents[3]
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


def row(id: str = "RMSNorm fwd", **makers: Callable[[], Contestant]) -> ContestRow:
    right = [torch.arange(1.0, 4.0)]
    return ContestRow(
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
            short=contestant("short", 1, 2), absent=lambda: pytest.importorskip,  # type: ignore[arg-type,return-value]
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


def test_a_slow_function_is_called_less_often() -> None:
    functions = {name: (lambda name=name: name) for name in ("slow", "fast")}
    times, _ = interleave(functions, Ticks(slow=SLOW / 2, fast=1e-3), repeats=9, warmup=1)
    assert (times["slow"].repeats, times["fast"].repeats) == (3, 9)


def test_no_round_begins_after_the_deadline() -> None:
    times, failed = interleave({"a": lambda: "a"}, Ticks(a=1.0), repeats=3, deadline=time.monotonic() - 1)
    assert not times
    assert failed == {"a": "not timed: the time budget was spent"}


def test_a_lost_device_ends_the_row() -> None:
    """That process can measure nothing more: the other contestants must not be blamed for it."""

    def lost() -> Contestant:
        raise DeviceBroken("an illegal memory access")

    heard: list[str] = []
    with pytest.raises(DeviceBroken):
        hold(
            row(ours=contestant("ours", 1, 2, 3), bad=lost, good=contestant("good", 1, 2, 3)),
            CPU, Ticks(ours=1.0, good=1.0), repeats=1, trying=heard.append,
        )  # fmt: skip
    assert heard == ["the reference", "ours", "bad"]


def test_a_few_wrong_rows_among_many_are_wrong() -> None:
    exact = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    results = exact.clone()
    results[77] = results[78]
    assert "wrong in 1 of 20000 rows, first in row 77" in str(wrong([results], [exact]))
    numbers = exact.flatten().index_fill(0, torch.tensor(5), 9.0)
    assert "wrong in 1 of 320000 rows, first in row 5" in str(wrong([numbers], [exact.flatten()]))
    assert wrong([exact * 1.01], [exact]) is None
    assert wrong([torch.tensor(3.0)], [torch.tensor(4.0)]) is not None


def test_every_row_has_a_target_and_every_target_a_row() -> None:
    assert {r.id for r in all_rows(FULL)} == {t.id for t in TARGETS}
    assert [c["id"] for c in assemble([], None)] == [t.id for t in TARGETS]
    # the largest row of each requested claim, before the second row of any
    first = all_rows(FULL)[:9]
    assert {r.id for r in first} == {t.id for t in TARGETS if t.aim or t.aim_rate}
    largest = {id: max(r.flops for r in all_rows(FULL) if r.id == id) for id in {r.id for r in first}}
    assert all(r.flops == largest[r.id] for r in first)


PEERS = {
    "attention": {"flash", "cudnn", "flex", "varlen", "eager", "compiled"},
    "norm": {"eager", "compiled", "liger"},
    "loss": {"eager", "compiled", "liger", "torch linear_cross_entropy"},
    "adamw": {"torch fused + copy", "eager", "compiled"},
}


@pytest.mark.parametrize("problem", all_rows(TINY), ids=lambda r: f"{r.id} {r.variant}")
def test_every_row_has_every_peer_or_a_reason(problem: ContestRow) -> None:
    kind = {"fused linear CE fwd+bwd": "loss", "AdamW partition": "adamw", "byte-plane split": "planes"}
    kind |= dict.fromkeys((r.id for r in attention_rows(TINY)), "attention")
    contest = problem.build(CPU)
    assert {"ours"} | PEERS.get(kind.get(problem.id, "norm"), set()) <= {*contest.makers, *contest.absent}
    assert all(contest.absent.values())


@pytest.mark.parametrize("problem", all_rows(TINY), ids=lambda r: f"{r.id} {r.variant}")
def test_the_real_rows_give_right_numbers(problem: ContestRow, device: torch.device) -> None:
    """fmscale and torch eager through the code of a run, tiny; interpreted without a GPU."""
    few = {"ours", "eager", "torch fused + copy"}
    run = hold(problem, device, WallClock(), repeats=1, warmup=0, only=few)
    assert {*run.reasons} <= {*problem.build(device).absent}, run.reasons
    assert run.rates["ours"] > 0
    assert run.rates.keys() == run.times.keys() >= {"ours", "eager"}


def test_flex_is_compiled_only_for_claims_that_name_it() -> None:
    """Its compilation takes longest."""
    for problem in attention_rows(TINY):
        target = next(target for target in TARGETS if target.id == problem.id)
        contest = problem.build(CPU)
        assert ("flex" in contest.makers) == ("flex" in {**target.must, **target.aim}), problem.id


def test_full_sizes_count_the_operations_of_the_convention() -> None:
    rows = {(r.id, r.variant): r for r in all_rows(FULL)}
    forward = rows["forward causal E=128", "T=8192"]
    assert forward.flops == 4 * 2 * 32 * 8192**2 * 128 / 2
    assert rows["backward causal E=128, deterministic", "T=8192"].flops == 2.5 * forward.flops
    assert rows["AdamW partition", "n=1e+09"].bytes == 28e9
    assert rows["RMSNorm bwd", ""].bytes == 3 * 16384 * 4096 * 2
    assert rows["fused linear CE fwd+bwd", "V=128256"].flops == 6 * 8192 * 4096 * 128256


def budget(soft: float) -> Budget:
    now = time.monotonic()
    return Budget(soft=now + soft, hard=now + 60.0)


SMALL = {"copy_bytes": 2**16, "side": 32, "repeats": 2}


@pytest.mark.slow
def test_who_takes_the_worker_along_is_left_out_and_the_row_held_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    said: list[str] = []
    ceilings, (fails, unbuilt, fine) = measure(
        "tests.kernels.bench.contest_rows:rows",
        repeats=2,
        budget=budget(60.0),
        say=said.append,
        ceilings=SMALL,
    )
    assert min(ceilings.copy, ceilings.matmul) > 0
    assert set(fails.rates) == {"ours", "eager"}
    assert set(fails.reasons) == {"flash", "wrong", "deadly"}
    assert fails.reasons["deadly"] == "crashed: exit status 17"
    assert unbuilt.reasons == {"ours": "not measured: OutOfMemoryError: too large"}
    assert fine.rates["ours"] > 0
    assert [line.split()[0] for line in said] == ["copy", "RMSNorm", "RMSNorm", "RMSNorm"]


@pytest.mark.slow
def test_a_hanging_contestant_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, (run,) = measure(
        "tests.kernels.bench.contest_rows:silent", repeats=2, budget=budget(60.0), say=print, ceilings=SMALL,
        patience=10.0,
    )  # fmt: skip
    assert set(run.rates) == {"ours"}
    assert run.reasons["hangs"] == "no answer within 10 s"


def test_a_spent_budget_is_said() -> None:
    with Workshop("no service", "is started") as workshop:
        run = contests.hold_in(workshop, 0, row(), 1, budget(-1.0))
    assert not run.rates
    assert run.reasons == {"ours": "not measured: the time budget was spent"}
    assert max(command.BUDGET[False]) <= 480
    assert max(command.BUDGET[True]) <= 180


class Scripted:
    """Replaces the worker: fmscale alone has a rate; with the peers the time ends."""

    def __init__(self, *_: object) -> None:
        self.asked: list[tuple[int, list[str] | None]] = []
        WORKERS.append(self)

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: dict[str, Any], *, deadline: float) -> dict[str, Any]:
        if "ceilings" in request:
            return {"ok": True, "copy": 1.0, "matmul": 2.0}
        self.asked.append((request["row"], request["only"]))
        run = unmeasured(row(), f"not timed: {SPENT}")
        if request["only"]:
            run = replace(run, rates={"ours": 5.0}, reasons={"flash": "not this one"})
        elif request["row"] == 1:
            run = replace(run, reasons={"ours": "off by 3 of its norm"})
        else:
            run = replace(run, reasons=dict(run.reasons) | {"compiled": f"not tried: {SPENT}"})
        return {"ok": True, "trying": None, "run": asdict(run)}


WORKERS: list[Scripted] = []


def test_ours_is_measured_in_every_row_before_any_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled peer may take the whole budget: later rows must still have fmscale's figure."""
    monkeypatch.setattr(contests, "Workshop", Scripted)
    _, runs = measure("tests.kernels.bench.contest_rows:rows", repeats=1, budget=budget(60.0), say=print)
    assert WORKERS.pop().asked == [(i, only) for only in (["ours"], None) for i in range(3)]
    assert [run.rates for run in runs] == [{"ours": 5.0}, {}, {"ours": 5.0}]
    assert runs[0].reasons == {"compiled": f"not tried: {SPENT}", "flash": "not this one"}
    assert runs[1].reasons == {"ours": "off by 3 of its norm"}  # a result that is wrong beside peers has no figure


def test_some_rows_are_measured_and_replace_no_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contests, "Workshop", Scripted)
    monkeypatch.setattr(command, "obstacle", lambda: None)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.main(["--quick", "--only", "backward .* T=4096", "--seconds", "60"]) == 0
    every = rows.quick()
    asked = [every[i] for i, _ in WORKERS.pop().asked]
    assert {(row.id, row.variant) for row in asked} == {("backward causal E=128, deterministic", "T=4096")}
    assert list(tmp_path.iterdir()) == []


def test_each_result_is_handed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is asked for alone keeps its number in the list."""
    monkeypatch.setattr(contests, "Workshop", Scripted)
    seen: list[Any] = []
    measure(
        "tests.kernels.bench.contest_rows:rows", repeats=1, budget=budget(60.0), say=print,
        only=lambda row: row.variant == "fine", done=seen.append,
    )  # fmt: skip
    assert WORKERS.pop().asked == [(2, ["ours"]), (2, None)]
    assert [type(one) for one in seen] == [Ceilings, Run, Run]


def test_ceilings() -> None:
    got = measure_ceilings(CPU, WallClock(), copy_bytes=2**20, side=64, repeats=3)
    assert got.copy > 0
    assert got.matmul > 0


@pytest.mark.parametrize("judge_numbers", [wrong, lambda a, b: worse(a, b, [t.double() for t in b])])
def test_a_small_systematic_error_is_wrong(judge_numbers: Callable[..., str | None]) -> None:
    exact = [torch.randn(4096)]
    assert judge_numbers(exact, exact) is None
    assert judge_numbers([exact[0] * 1.03], exact) is not None
    assert judge_numbers([exact[0].where(exact[0] > -9, torch.nan)], exact) is None
    assert judge_numbers([torch.full_like(exact[0], torch.nan)], exact) is not None
