"""Verdicts, files, tables and exit statuses from runs with made-up timings."""

import ast
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from fmscale.kernels import dispatch
from fmscale.kernels.launch import TRITON_VERSION

from benchmarks.kernels import command, report
from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.claims import TARGETS, Target, assemble, claim, judge, judge_aim
from benchmarks.kernels.command import conclude, main
from benchmarks.kernels.contest import Run, unmeasured
from benchmarks.kernels.listing import OPS, listing
from benchmarks.kernels.roofline import roofline
from benchmarks.kernels.rows import all_rows
from benchmarks.kernels.sizes import FULL

ROOT = Path(__file__).parents[3]


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
        ([run_of(flash=4.0, flex=4.0)], False),  # fmscale was wrong, and others ran
        ([unmeasured(all_rows(FULL)[0], "no GPU")], None),
        ([], None),
    ],
)
def test_a_claim_is_ok_only_where_every_row_shows_it(runs: list[Run], verdict: bool | None) -> None:
    assert judge(TARGET, runs) is verdict


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([run_of(ours=5.0, cudnn=5.0)], True),
        ([run_of(ours=3.0, cudnn=2.0)], False),  # the target rate is not reached
        ([run_of(ours=5.0, cudnn=9.0)], False),
        ([run_of(ours=5.0)], None),
        ([], None),
    ],
)
def test_the_aim_is_judged_apart(runs: list[Run], verdict: bool | None) -> None:
    assert judge_aim(Target(id="x", what="x", limit="matmul", aim={"cudnn": 0.9}, aim_rate=4.0), runs) is verdict
    assert judge_aim(Target(id="x", what="x", limit="matmul"), runs) is None


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


def test_the_plot_shows_every_run_and_both_ceilings() -> None:
    runs = [run_of(ours=5.0, flash=7.0), run_of(ours=0.4), run_of(flash=7.0)]
    svg = ElementTree.fromstring(roofline(runs, Ceilings(copy=4.0, matmul=800.0), "H200 & co"))
    circles = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 3  # two rows of fmscale, and the faster peer
    texts = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"copy 4.00 TB/s", "matmul 800 TFLOP/s", "H200 & co"} <= set(texts)
    for circle in circles:
        assert 0 < float(circle.get("cx", "")) < 900
        assert 0 < float(circle.get("cy", "")) < 560


def test_recorded_timings_become_files(tmp_path: Path) -> None:
    """The JSON, the plot and the verdicts from made-up timings, like those of a run on a device."""
    runs = [
        run_of("forward causal E=64", flops=2.0, ours=9.0, flash=4.0, cudnn=20.0),
        run_of("forward causal E=64", flops=1.0, ours=5.0, flash=4.0, cudnn=5.0),
    ]
    outcome = conclude(runs, Ceilings(copy=4.0, matmul=20.0), quick=True, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "kernels.quick.json",
        "kernels.quick_roofline.svg",
    ]
    assert json.loads((tmp_path / "kernels.quick.json").read_text()) == outcome
    (one,) = [c for c in outcome["claims"] if c["id"] == "forward causal E=64"]
    assert (one["ours"], one["peers"]["cudnn"], one["ratio"]) == (9.0, 20.0, 0.45)  # of the largest
    assert (one["ok"], one["aim_ok"]) == (True, False)
    text = report.table(outcome)
    assert "forward causal E=64: 9 TFLOP/s, 45% of the limit  [ok]" in text
    assert "aim >= 0.9 x cudnn; beyond: 1.05 x cudnn  [MISSED]" in text
    assert "ours 9, flash 4 (2.25 x), cudnn 20 (0.45 x)" in text


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
    assert main(["--tune", "--output", str(tmp_path)]) == 2
    assert "nothing was tuned: no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["--check"]) == 2
    assert "RMSNorm fwd: not measured  [not decided]" in capsys.readouterr().out


BARE = """
import importlib.abc, runpy, sys

class Stranger(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        # what only fmscale needs: torch brings its own dependencies, numpy is optional to it
        if name.partition(".")[0] in {"typer", "rich", "yaml", "pyarrow", "deepspeed", "obstore", "zarr"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Stranger())
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("benchmarks.kernels", run_name="__main__")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_bare_checkout_is_enough(tmp_path: Path) -> None:
    """No install (-S leaves out the editable one) and no package but torch and triton."""
    for folder in ("kernels", "fmscale", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    path = os.pathsep.join([str(tmp_path), str(Path(torch.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-S", "-c", BARE, "--list"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "  attention: " in done.stdout


def test_the_table_shows_losing_rows_and_reasons() -> None:
    runs = [run_of("forward causal E=64", ours=1.0, flash=4.0)]
    text = report.table(report.result(assemble(runs, Ceilings(copy=4.0, matmul=20.0)), quick=True, extra={}))
    assert "forward causal E=64: 1 TFLOP/s, 5% of the limit  [MISSED]" in text
    assert "ours 1, flash 4" in text


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for op in OPS:
        assert f"  {op}: " in out
    assert f"Triton {TRITON_VERSION}" in out


@pytest.mark.gpu
def test_quick_run_on_a_device(tmp_path: Path) -> None:
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    outcome = json.loads((tmp_path / "kernels.quick.json").read_text())
    assert all(any("ours" in run["rates"] for run in one["runs"]) for one in outcome["claims"])
    assert (tmp_path / "kernels.quick_roofline.svg").exists()
    assert max(command.BUDGET[True]) < 180


def test_every_op_with_a_choice_is_listed() -> None:
    calls = [
        node
        for path in (ROOT / "kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "choose"
    ]
    assert {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)} == {*OPS}


def test_the_listing_shows_what_was_measured_and_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_tables", "_entries"):
        monkeypatch.setattr(dispatch, name, {})
    gpu = dispatch.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    entry = dispatch.TunedEntry(
        op="attention", bucket="bfloat16 E128 causal", backend="sdpa",
        configs={"forward": {"BLOCK_M": 128}}, milliseconds={"sdpa": 1.5, "triton": 2.0},
    )  # fmt: skip
    bad = {
        "op": "swiglu", "bucket": "bfloat16 F4096", "kernel": "forward", "config": {"BLOCK": 8},
        "reason": "largest error 3", "triton": TRITON_VERSION, "ptxas": "12.8",
    }  # fmt: skip
    dispatch.use_table(dispatch.TunedTable(gpu=gpu, triton=TRITON_VERSION, entries=(entry,), rejected=(bad,)))
    dispatch.use_table(dispatch.TunedTable(gpu="NVIDIA H200", triton="0.1"))
    text = listing()
    assert "attention, bfloat16 E128 causal: sdpa (sdpa 1.5 ms, triton 2 ms)" in text
    assert "rejected: swiglu, bfloat16 F4096, forward {'BLOCK': 8}: largest error 3" in text
    assert "ptxas 12.8" in text
    assert "NVIDIA H200 with Triton 0.1" in text
