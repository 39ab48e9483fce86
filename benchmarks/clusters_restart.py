"""R1.restart: a run is killed with SIGKILL and started again; seconds from the start command to the end of its next
step, by parts. The parts are those of rank 0's `first_step` event; `launcher` is the time before rank 0's process.

    python -m benchmarks.clusters_restart [--quick]
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import ROOT, Claim
from fmscale.runtime.sinks.jsonl import read_jsonl

CONFIG = """
extends: [{root}/configs/model/tiny.yaml]
store: {{url: {folder}/store}}
data: {{sequence_length: 512, memory_bytes: 67108864, sources: [{{dataset: code}}]}}
batch: {{global_batch: 8, micro_batch: 4}}
train: {{run: restart, folder: {folder}/runs, steps: 1000000, log_every: 1}}
schedule: {{kind: constant}}
checkpoint: {{every: 4}}
"""
"""3.5 M parameters and an 8k vocabulary, as `configs/run/laptop.yaml`."""
TARGETS = {1: 3.0, 2: 4.0}
"""Seconds by ranks on one node."""
PATIENCE = 180.0


def program() -> str:
    """The command of this environment."""
    return str(Path(sys.executable).with_name("fmscale"))


def prepare(folder: Path) -> Path:
    """The dataset in FOLDER/store, of the standard library's source; the config that reads it."""
    corpus = [str(path) for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))]
    words = ("--store", f"{folder}/store", "--dataset", "code", "--tokenizer", "bpe:8192", "--workers", "1")
    subprocess.run([program(), "ingest", *corpus, *words], check=True, capture_output=True)
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(root=ROOT, folder=folder))
    return path


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a process and all its descendants, as when a machine loses its power."""
    family = psutil.Process(process.pid)
    for each in [*family.children(recursive=True), family]:
        if each.is_running():
            each.send_signal(signal.SIGKILL)
    process.wait()


def _until(found: Callable[[], Any], process: "subprocess.Popen[bytes]") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        if process.poll() is not None or time.monotonic() > deadline:
            kill_all(process) if process.poll() is None else None
            raise RuntimeError(f"{process.args} did not come to its next step")
        time.sleep(0.02)
    return value


def _start(config: Path, ranks: int, log: Path) -> "subprocess.Popen[bytes]":
    verb = ["train", str(config)] if ranks == 1 else ["launch", str(config), "--procs-per-node", str(ranks)]
    # Bytecode is kept, as in an install; images of Python prevent it, and each start would compile our sources.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    with log.open("wb") as out:
        return subprocess.Popen([program(), *verb], stdout=out, stderr=out, env=environment, start_new_session=True)


def restarts(config: Path, ranks: int, count: int) -> list[dict[str, float]]:
    """Seconds by part of `count` restarts, with `all`. Raises RuntimeError if a start comes to no step."""
    metrics, log = config.parent / "runs/restart/metrics.jsonl", config.parent / "restart.log"

    def events(name: str, since: float) -> list[dict[str, Any]]:
        records = list(read_jsonl(metrics)) if metrics.is_file() else []
        return [record for record in records if record.get("event") == name and record["time"] > since]

    began = time.time()
    process = _start(config, ranks, log)
    _until(lambda: [e for e in events("checkpoint", began) if e.get("state") == "acknowledged"], process)
    kill_all(process)
    found = []
    for _ in range(count):
        began = time.time()
        process = _start(config, ranks, log)
        event = _until(lambda since=began: events("first_step", since), process)[0]
        kill_all(process)
        steps = [r for r in read_jsonl(metrics) if "event" not in r and r["time"] > began]
        whole = steps[0]["time"] - began
        found.append({"all": whole, "launcher": whole - event["seconds"], **event["phases"]})
    return found


def restart_claims(*, quick: bool) -> list[Claim]:
    """R1 for one and for two ranks."""
    count = 3 if quick else 12
    claims = []
    with tempfile.TemporaryDirectory(prefix="fmscale-restart-") as place:
        config = prepare(Path(place))
        for ranks, target in TARGETS.items():
            runs = restarts(config, ranks, count)
            parts = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}
            shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if name != "all")
            claims.append(
                Claim(
                    id=f"R1.restart.{ranks}",
                    what=f"start command to next step, {ranks} rank{'s' * (ranks > 1)}; by parts: {shown}",
                    unit="s",
                    ours=parts["all"],
                    ratio=parts["all"],
                    target=f"<= {target}",
                    ok=parts["all"] <= target,
                    runs=[{"system": "fmscale", "value": run["all"], "parts": run} for run in runs],
                )
            )
    return claims


if __name__ == "__main__":
    for claim in restart_claims(quick="--quick" in sys.argv):
        print(claim.id, f"{claim.ours:.2f} s", claim.what)
