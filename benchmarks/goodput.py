"""`fmscale bench goodput`: the share of time that becomes new steps, when processes are killed on a schedule.

- G1.ratio: steps reached under faults every 30 s, ours against a plain loop with torch.save and against the same loop
with torch's distributed checkpoint, asynchronous. All train the same model on the same text with one thread, and are
started again at once. Each saves as often as is best for it.
- G1.absolute: our goodput with one fault in 10 minutes.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.clusters_restart import program
from benchmarks.goodput_run import BATCH, LENGTH, MODEL, Supervised, corpus_files, supervise
from benchmarks.harness import Claim, write_results
from fmscale.runtime.sinks.jsonl import read_jsonl

EVERY, LONG_EVERY = 8, 24
"""Steps between two of our saves, which do not block: about the time until a save is durable, and with one fault in 10
minutes Young's interval, sqrt(2 x 0.1 s x 600 s) = 11 s: the step behind a save takes 0.1 s longer.
"""
SCHEDULES = {False: ((30.0, 60.0), 90.0, 3), True: ((20.0,), 40.0, 1)}
"""Times of the faults, seconds of a run, and rounds."""
LONG = {False: ((300.0,), 600.0), True: ((30.0,), 60.0)}
CONFIG = """
store: {{url: {folder}/store}}
data: {{sequence_length: {length}, memory_bytes: 67108864, sources: [{{dataset: code}}]}}
batch: {{global_batch: {batch}, micro_batch: {batch}}}
model: {model}
train: {{run: ours, folder: {folder}/runs, steps: 1000000, log_every: 1, zero_stage: 0, precision: fp32}}
schedule: {{kind: constant}}
optimizer: {{lr: 3.0e-4}}
checkpoint: {{every: {every}}}
"""


def ours(folder: Path, faults: tuple[float, ...], seconds: float, every: int = EVERY) -> Supervised:
    """`fmscale train`, which saves each `every` steps."""
    import subprocess

    words = ("--store", f"{folder}/store", "--dataset", "code", "--tokenizer", "bytes", "--workers", "1")
    subprocess.run([program(), "ingest", *corpus_files(), *words], check=True, capture_output=True)
    config = folder / "run.yaml"
    config.write_text(CONFIG.format(folder=folder, length=LENGTH, batch=BATCH, model=MODEL, every=every))

    def done() -> list[tuple[int, float]]:
        records = read_jsonl(folder / "runs/ours/metrics.jsonl")
        return [(record["step"], record["time"]) for record in records if "event" not in record]

    return supervise([program(), "train", str(config)], done, faults, seconds, folder)


def plain(kind: str, folder: Path, faults: tuple[float, ...], seconds: float) -> Supervised:
    """The plain loop, with one kind of save."""

    def done() -> list[tuple[int, float]]:
        records = read_jsonl(folder / "steps")
        return [(record["step"], record["time"]) for record in records]

    command = [sys.executable, "-m", "benchmarks.goodput_plain", str(folder), kind, str(faults[0])]
    return supervise(command, done, faults, seconds, folder)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure; writes benchmarks/results/goodput.json. Returns the claims as in that file."""
    systems: dict[str, Callable[[Path, tuple[float, ...], float], Supervised]] = {
        "fmscale": ours,
        "torch.save": partial(plain, "save"),
        "DCP async": partial(plain, "dcp"),
    }
    faults, seconds, rounds = SCHEDULES[quick]
    found: dict[str, list[Supervised]] = {name: [] for name in systems}
    for number in range(rounds):
        for name in list(systems) if number % 2 else reversed(systems):
            with tempfile.TemporaryDirectory(prefix="fmscale-goodput-") as folder:
                found[name].append(systems[name](Path(folder), faults, seconds))
    medians = {name: statistics.median(one.steps for one in runs) for name, runs in found.items()}
    claims = [
        Claim(
            id=f"G1.ratio.{peer.split()[0].lower()}",
            what=f"steps reached in {seconds:.0f} s with {len(faults)} faults; goodput "
            + ", ".join(f"{name} {statistics.median(o.goodput for o in runs):.3f}" for name, runs in found.items())
            + "; repeated steps "
            + ", ".join(f"{name} {statistics.median(o.repeated for o in runs):.0f}" for name, runs in found.items()),
            unit="steps",
            ours=medians["fmscale"],
            peers={peer: medians[peer]},
            ratio=medians["fmscale"] / max(1, medians[peer]),
            target=f">= 1.5 of {peer}" if peer == "torch.save" else f">= 1.0 of {peer}",
            ok=medians["fmscale"] >= (1.5 if peer == "torch.save" else 1.0) * medians[peer],
            runs=[{"system": name, "value": one.steps, **vars(one)} for name in found for one in found[name]],
        )
        for peer in ("torch.save", "DCP async")
    ]
    faults, seconds = LONG[quick]
    with tempfile.TemporaryDirectory(prefix="fmscale-goodput-") as folder:
        long = ours(Path(folder), faults, seconds, LONG_EVERY)
    claims.append(
        Claim(
            id="G1.absolute",
            what=f"goodput with {len(faults)} fault in {seconds:.0f} s; {long.repeated} steps repeated",
            unit="share of the time",
            ours=long.goodput,
            ratio=long.goodput,
            target=">= 0.95",
            ok=long.goodput >= 0.95,
            runs=[{"system": "fmscale", "value": long.goodput, **vars(long)}],
        )
    )
    write_results("goodput", claims, quick=quick, packages=["torch", "deepspeed", "numpy"])
    return [vars(claim) for claim in claims]
