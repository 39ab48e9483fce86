"""Folders of runs with records like the trainer's, without a training."""

from pathlib import Path
from typing import Any

from fmscale.runtime.sinks.jsonl import JsonlSink


def step(number: int, at: float, **changes: Any) -> dict[str, Any]:
    """A step of 2 seconds that ended at `at`."""
    values = {"time": at, "step": number, "loss": 5.0 / number, "tokens": 400, "seconds": 2.0, "data_stall": 0.2}
    return {**values, "ckpt_blocking": 0.1, "applied": True, "tokens_per_second": 200.0 + number, **changes}


def started(at: float, **changes: Any) -> dict[str, Any]:
    """The start of ranks that joined 3 seconds before `at`, on CPUs."""
    values = {"time": at, "event": "started", "began": at - 3.0, "world_size": 2, "zero_stage": 2, "device": "cpu"}
    return {**values, "flops_per_token": 1e9, "peak_flops": None, **changes}


def write_records(folder: Path, *records: dict[str, Any]) -> Path:
    """Append records to a run's folder."""
    sink = JsonlSink(folder / "metrics.jsonl")
    for record in records:
        sink.write(record)
    sink.close()
    return folder


def killed_and_resumed(folder: Path, loss: float = 0.0) -> Path:
    """A run of 6 steps on 2 ranks that is killed after step 4, and goes on from step 2 on 1 rank.

    Seconds: start 3 + 1 and 3 + 1; steps of 2 each, one of them with an evaluation of 0.5; down 6; at the end 1 for
    the evaluation and 1 more for the last save.
    """
    saved = {"event": "checkpoint", "state": "acknowledged", "durable_seconds": 0.4, "blocking_seconds": 0.1}
    first = [started(1003.0), *(step(n, 1004.0 + 2 * n) for n in (1, 2, 3, 4))]
    first[3:3] = [
        {"time": 1008.5, "event": "evaluation", "step": 2, "heldout/docs": 3.0 + loss, "seconds": 0.5},
        {"time": 1008.9, "step": 2, **saved},
        {"time": 1009.0, "event": "ranks", "step": 2, "seconds": [2.0, 1.9], "data_stall": [0.01, 0.2]},
    ]
    first.append({"time": 1012.0, "event": "ranks", "step": 4, "seconds": [2.0, 1.9], "data_stall": [0.01, 0.15]})
    moved = {"world_size_then": 2, "world_size": 1, "run": folder.name, "passed_over": []}
    second = [
        started(1021.0, world_size=1),
        {"time": 1021.5, "event": "resumed", "step": 2, "steps": 6, **moved},
        *(step(n, 1018.0 + 2 * n, loss=5.0 / n + loss) for n in (3, 4, 5, 6)),
        {"time": 1031.0, "event": "evaluation", "step": 6, "heldout/docs": 1.5 + loss, "seconds": 1.0},
        {"time": 1031.5, "event": "reads", "step": 6, "outcome": "complete"},
        {"time": 1032.0, "step": 6, **saved, "durable_seconds": 1.1},
    ]
    return write_records(folder, *first, *second)
