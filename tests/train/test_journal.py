"""Records of the steps: units, metrics and sources, summed over ranks."""

import math
from pathlib import Path
from typing import Any

import torch

from fmscale.runtime.axes import Axis
from fmscale.runtime.sinks.jsonl import JsonlSink, read_jsonl
from fmscale.runtime.sinks.protocol import RunInfo
from fmscale.runtime.sinks.run_sinks import RunSinks
from fmscale.train.engine.protocol import Update
from fmscale.train.journal import Journal, Timing
from fmscale.train.step import StepResult
from tests.helpers.ranks import run_ranks


def journaled(rank: int, size: int, folder: str, unit: str, metrics: bool) -> None:
    """Two steps: this rank's loss sum is 3 + rank for source a and 1 for source b; the second has no targets."""
    file = JsonlSink(Path(folder, "metrics.jsonl")) if rank == 0 else None
    sinks = RunSinks(file, (), RunInfo(name="r", store="", folder=Path(folder), config={}))
    journal = Journal(
        sinks,
        ["a", "b"],
        unit=unit,
        dp=Axis(rank=rank, size=size),
        flops_per_token=1e9,
        peak_flops=1e12,
        world_size=size,
    )
    for step, count in ((0, 10.0), (1, 0.0)):
        result = StepResult(
            loss_sum=torch.tensor(4.0 + rank),
            loss_by_source=torch.tensor([[3.0 + rank, 1.0], [4.0, 1.0 - step]]),
            count=count,
            update=Update(grad_norm=1.5, applied=True),
            metrics={"right": torch.tensor(1.0 + rank), "far": torch.tensor(5)} if metrics else {},
        )
        journal.add(step, 0.1, result, Timing(step=2.0 + rank, data_stall=float(rank * step), ckpt_blocking=0.0))
    journal.flush()
    journal.end(2, "complete")
    journal.close(None, None)


def records(folder: Path, unit: str, metrics: bool) -> list[dict[str, Any]]:
    run_ranks(journaled, 2, str(folder), unit, metrics)
    return [record for record in read_jsonl(folder / "metrics.jsonl") if "event" not in record]


def test_a_step_of_tokens_has_the_keys_of_earlier_runs(tmp_path: Path) -> None:
    first, second = records(tmp_path, "tokens", metrics=False)
    [ranks] = [record for record in read_jsonl(tmp_path / "metrics.jsonl") if record.get("event") == "ranks"]
    assert (ranks["step"], ranks["seconds"], ranks["data_stall"]) == (2, [2.0, 3.0], [0.0, 0.5]), "means by rank"
    assert first.pop("time") > 0
    assert first == {
        "step": 1,
        "loss": 0.9,
        "tokens": 10,
        "lr": 0.1,
        "grad_norm": 1.5,
        "applied": True,
        "seconds": 3.0,
        "data_stall": 0.0,
        "ckpt_blocking": 0.0,
        "tokens_per_second": 10 / 3,
        "tokens_per_second_per_gpu": 10 / 6,
        "mfu": 1e9 * 10 / 6 / 1e12,
        "loss/a": 7 / 8,
        "loss/b": 1.0,
    }
    assert math.isnan(float(second["loss"]))
    assert "loss/b" not in second


def test_another_unit_names_its_count_and_rates_and_metrics_are_means_over_it(tmp_path: Path) -> None:
    first, _ = records(tmp_path, "pairs", metrics=True)
    assert (first["pairs"], first["pairs_per_second"], first["loss"]) == (10, 10 / 3, 0.9)
    assert (first["metric/right"], first["metric/far"]) == (0.3, 1.0)
    assert not {"tokens", "tokens_per_second", "mfu"} & first.keys()
    assert (first["loss/a"], first["loss/b"]) == (7 / 8, 1.0)
