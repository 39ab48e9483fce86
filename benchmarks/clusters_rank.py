"""A rank of a real run, started by the launcher in place of `fmscale train`, that writes down what it does.

    python -m benchmarks.clusters_rank requests CONFIG FOLDER   the requests it sends to the ranks' store, in order
    python -m benchmarks.clusters_rank loop CONFIG FOLDER       CPU time of the training thread by step and part

FOLDER/rank-N.json has the result.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmscale.launch.environment import rank_environment
from fmscale.launch.launch import LaunchRequest
from fmscale.launch.torchrun import launch_by_torchrun
from torch import distributed

from benchmarks.clusters_restart import program
from fmscale.config import load_config
from fmscale.runtime.world import read_world

CONFIG = """
model: {{num_layers: 2, dim: 64, num_heads: 4, num_kv_heads: 2, hidden_dim: 128, max_seq_len: 64, tied: true}}
store: {{url: {folder}/store}}
data: {{sequence_length: 64, memory_bytes: 67108864, sources: [{{dataset: code}}]}}
batch: {{global_batch: 8, micro_batch: 4}}
train: {{run: small, folder: {folder}/runs, steps: {steps}, log_every: 1, zero_stage: {stage}}}
schedule: {{kind: constant}}
"""
RANKS = 2
PATIENCE = 300.0


def small_run(folder: Path, steps: int, *, stage: int = 1) -> Path:
    """The config of a run of `steps` steps, of 0.1 M parameters and rows of 64 bytes, which saves at its end; the
    dataset is ingested if it is not there.
    """
    if not (folder / "store").exists():
        source = str(Path(json.__file__).parent)
        words = ("--store", f"{folder}/store", "--dataset", "code", "--tokenizer", "bytes", "--workers", "1")
        subprocess.run([program(), "ingest", source, *words], check=True, capture_output=True)
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(folder=folder, steps=steps, stage=stage))
    return path


def run_ranks_of(mode: str, config: Path, folder: Path) -> list[Any]:
    """The results of both ranks, started by the product's launcher on this machine. Raises RuntimeError."""
    folder.mkdir(exist_ok=True)
    command = (sys.executable, "-m", "benchmarks.clusters_rank", mode, str(config), str(folder))
    launch = launch_by_torchrun(
        LaunchRequest(command=command, procs_per_node=RANKS, environment=rank_environment({"OMP_NUM_THREADS": "1"}))
    )
    from os import environ

    done = subprocess.run(
        launch.argv,
        env={**environ, **launch.environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the ranks ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


class RecordingStore(distributed.Store):  # type: ignore[misc]
    """A store that writes down its requests: [thread, request, key, bytes of the value]."""

    def __init__(self, inner: Any, told: list[list[Any]]) -> None:
        super().__init__()
        self._inner, self._told = inner, told

    def clone(self) -> "RecordingStore":
        """Another connection, with requests on the same list."""
        return RecordingStore(self._inner.clone(), self._told)


def _recorded(name: str) -> Callable[..., Any]:
    def request(self: RecordingStore, *values: Any, **named: Any) -> Any:
        key = values[0] if values else ""
        size = sum(len(value) for value in values[1:] if isinstance(value, str | bytes))
        self._told.append([threading.current_thread().name, name, key, size])
        return getattr(self._inner, name)(*values, **named)

    return request


REQUESTS = (
    *("set", "get", "add", "check", "wait", "compare_set", "append", "multi_get", "multi_set", "delete_key"),
    *("num_keys", "has_extended_api"),
)
for each in REQUESTS:
    setattr(RecordingStore, each, _recorded(each))


def record_requests() -> list[list[Any]]:
    """Make this process's connection to the store write down its requests, and its waits as [main, kind, name, value];
    the list grows.
    """
    from fmscale.runtime import waits
    from fmscale.train import session

    told: list[list[Any]] = []
    inner = {kind: getattr(waits.HostWaits, kind) for kind in ("arrive", "barrier", "wait")}
    connect = session.connect
    session.connect = lambda *values, **named: RecordingStore(connect(*values, **named), told)  # type: ignore[attr-defined]

    for kind in inner:

        def call(self: Any, name: str, *values: Any, kind: str = kind, **named: Any) -> Any:
            value = values[0] if values else named.get("value", "")
            told.append(["main", "begin " + kind, name, value])
            try:
                return inner[kind](self, name, *values, **named)
            finally:
                told.append(["main", "end " + kind, name, ""])

        setattr(waits.HostWaits, kind, call)
    return told


def record_loop() -> dict[str, list[Any]]:
    """Make this process measure its loop: by step the CPU seconds of the training thread outside forward, backward and
    optimizer, and the waits for gloo or the store between an optimizer and the next forward; the lists grow.
    """
    from fmscale.runtime import collectives, waits
    from fmscale.train.engine.deepspeed import DeepSpeedEngine

    found: dict[str, list[Any]] = {"cpu": [], "waits": []}
    at = {"inside": 0.0, "step": 0.0, "between": 0.0}

    def measured(name: str) -> Callable[..., Any]:
        inner = getattr(DeepSpeedEngine, name)

        def call(*values: Any, **named: Any) -> Any:
            at["between"] = 0.0
            begin = time.thread_time()
            try:
                return inner(*values, **named)
            finally:
                now = time.thread_time()
                at["inside"] += now - begin
                if name == "step":
                    found["cpu"].append(now - at["step"] - at["inside"])
                    found["waits"].append([])
                    at.update(inside=0.0, step=now, between=1.0)

        return call

    def counted(place: Any, name: str) -> Callable[..., Any]:
        inner = getattr(place, name)

        def call(*values: Any, **named: Any) -> Any:
            if at["between"] and threading.current_thread() is threading.main_thread():
                found["waits"][-1].append(name)
            return inner(*values, **named)

        return call

    for name in ("forward", "backward", "step"):
        setattr(DeepSpeedEngine, name, measured(name))
    for place, name in (
        (collectives.distributed, "all_reduce"),
        (distributed.Work, "wait"),
        (waits.HostWaits, "_await"),
    ):
        setattr(place, name, counted(place, name))
    return found


def main() -> None:
    """Train as `fmscale train`, and write the result."""
    mode, config, folder = sys.argv[1:]
    result = {"requests": record_requests, "loop": record_loop}[mode]()
    from fmscale.train.run import run_training

    run_training(load_config(config), show=lambda record: None, event=lambda record: None)
    (Path(folder) / f"rank-{read_world().rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
