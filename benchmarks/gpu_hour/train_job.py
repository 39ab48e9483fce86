"""A run in its own process: the real trainer, and its numbers as they arrive.

python -m benchmarks.gpu_hour.train_job CONFIG [--backend NAME] [--profile N] [--leave-after N] KEY=VALUE...
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_hour.device_use import Profile
from benchmarks.gpu_hour.emit import emit
from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.config import Config, load_config
from fmscale.config.derived import num_parameters
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.store.open import open_store
from fmscale.train import loop as looping
from fmscale.train import run as running
from fmscale.train.compare import read_history
from fmscale.train.preflight.stages import RunSize, all_stages

KEPT = (
    "step",
    "loss",
    "grad_norm",
    "tokens",
    "seconds",
    "data_stall",
    "ckpt_blocking",
    "tokens_per_second",
    "mfu",
)
DURABLE_SECONDS = 60.0
"""Most seconds from a save to its entry in the run's log."""
SAVED = ("state", "reason", "blocking_seconds", "snapshot_seconds", "durable_seconds", "bytes_written")


def main() -> None:
    """Train by the config; emits settings, steps, saves, and observations at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--backend", help="of torch.compile, where it is not inductor")
    parser.add_argument("--profile", type=int, help="call of train_step from which three steps are profiled")
    parser.add_argument("--leave-after", type=int, help="end behind this step, without the last save")
    parser.add_argument("--kill-after", type=int, help="kill -9 behind this step, when a checkpoint is durable")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    config = load_config(asked.config, tuple(asked.overrides))
    if asked.backend:
        torch.compile = partial(torch.compile, backend=asked.backend)
    _emit(about="settings", **settings(config))
    on_gpu = config.train.device == "cuda"
    running.assemble = _then(running.assemble, partial(_memory, "built", config, on_gpu))
    running.dry_run = _then(running.dry_run, partial(_memory, "stepped", config, on_gpu))
    profile = Profile(on_gpu=on_gpu, first=asked.profile) if asked.profile else None
    if profile:
        looping.train_step = profile.around(looping.train_step)
    seen, began = 0, time.time()

    def show(record: Mapping[str, Any]) -> None:
        nonlocal seen
        steps = [one for one in read_jsonl(folder / "metrics.jsonl") if "event" not in one]
        # a run that goes on finds the records of its earlier process
        new, seen = [one for one in steps[seen:] if one["time"] >= began], len(steps)
        _emit(about="steps", steps=[{name: one[name] for name in KEPT if name in one} for one in new])
        if steps and steps[-1]["step"] == asked.kill_after:
            _wait_for_a_checkpoint(config)
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if steps and steps[-1]["step"] == asked.leave_after:
            end(complete=False)
            os._exit(0)  # a last save would take seconds of the step's time

    def event(record: Mapping[str, Any]) -> None:
        if record.get("event") == "checkpoint":
            kept = {name: record[name] for name in SAVED if name in record}
            _emit(about="save", saved_step=record["step"], **kept)

    def end(*, complete: bool) -> None:
        _emit(
            about="end",
            complete=complete,
            order_hash=order(folder) if config.train.record_delivery else None,
            extensions=extensions(),
            peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
            **(profile.found if profile else {}),
            **graphs(),
        )

    folder = Path(config.train.folder) / config.train.run
    outcome = running.run_training(config, show=show, event=event)
    end(complete=not outcome.stop)


def _wait_for_a_checkpoint(config: Config) -> None:
    """Return when the run has a durable checkpoint. Raises TimeoutError after DURABLE_SECONDS."""
    until = time.monotonic() + DURABLE_SECONDS
    while not list_checkpoints(open_store(config.store.url), config.train.run):
        if time.monotonic() > until:
            raise TimeoutError(f"no save was durable {DURABLE_SECONDS:.0f} s after it")
        time.sleep(0.05)


def settings(config: Config) -> dict[str, Any]:
    """Settings that differ between the runs of a step."""
    train = config.train
    return {
        "device": train.device,
        "precision": train.precision,
        "zero_stage": train.zero_stage,
        "compile": train.compile,
        "recompute": train.recompute,
        "attention": config.decoder("this benchmark").attention_backend,
        "steps": train.steps,
    }


def graphs() -> dict[str, int]:
    """Graphs that dynamo made in this process."""
    from torch._dynamo.utils import counters

    return {
        "unique_graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def order(folder: Path) -> str | None:
    """Hash of all inputs of the model."""
    from fmscale.data.provenance.delivery import order_hash

    delivered = read_history(folder).delivered
    return order_hash(delivered) if delivered is not None else None


def extensions() -> list[str]:
    """Extensions that torch built under TORCH_EXTENSIONS_DIR; the driver points it to an empty folder."""
    root = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _memory(about: str, config: Config, on_gpu: bool) -> None:
    model = config.decoder("this benchmark")
    vocab_size = model.vocab_size
    parameters = num_parameters(model, vocab_size) if vocab_size else None
    planned = None
    if parameters:
        needs = all_stages(config, RunSize(trained=parameters), None, on_gpu=on_gpu)[config.train.zero_stage]
        planned = needs.device - needs.buckets  # between two steps a bucket is empty
    _emit(
        about=about,
        parameters=parameters,
        allocated_bytes=torch.cuda.memory_allocated() if on_gpu else None,
        planned_bytes=planned,
    )


def _then(function: Any, after: Any) -> Any:
    """The function, with a call of `after` at its return, when only the state is on the device."""

    def both(*given: Any, **options: Any) -> Any:
        made = function(*given, **options)
        after()
        return made

    return both


_emit = partial(emit, sys.stdout)

if __name__ == "__main__":
    main()
