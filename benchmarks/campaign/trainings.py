"""`fmscale train` at one rank, at two, and at both in turns, killed at random moments until it completes."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from benchmarks.campaign.outcome import Outcome
from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.store.open import open_store
from tests.train.runs import delivered, make_corpus, steps_of, write_config
from tests.train.test_kills import start
from tests.train.test_resume import exact

CONTENT = ["k", "source", "row", "digest", "pieces"]
STARTS = 4.0
"""Seconds of a start."""
PATIENCE = 150.0
"""Seconds that a start, a step or an end may take on a busy machine."""


def training_kills(folder: Path, target: int, seed: int) -> Iterator[Outcome]:
    """Losses and samples equal those of a run without kills; no acknowledged checkpoint is lost."""
    chance, store = random.Random(seed), make_corpus(folder)
    path = write_config(folder, store)
    shares = {(1,): target, (2,): 0, (1, 2): 0}
    if target > 4:
        shares = {(1,): target // 2, (2,): target // 4, (1, 2): target - target // 2 - target // 4}
    for ranks, kills in shares.items():
        if not kills:
            continue
        # A step takes 20 ms and a kill comes up to 0.3 s late: with 5 steps a kill, a run was complete before its last.
        overrides = (f"train.steps={15 * kills + 20}", "checkpoint.every=2")
        killed = "killed-" + "-".join(map(str, ranks))
        whole = killed.replace("killed", "whole")
        yield ended(path, ranks[0], f"train.run={whole}", *overrides)
        yield from kill_until_complete(path, folder / killed, store, ranks, kills, chance, overrides)
        yield compared(folder / whole, folder / killed, same_size=len(ranks) == 1)


def ended(path: Path, ranks: int, *overrides: str) -> Outcome:
    """A run to its end, without a kill."""
    process = start(path, ranks, *overrides)
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome(count=0, fault="hung", reason=f"{overrides[0]} did not end within {PATIENCE:.0f} s")
    return Outcome(count=0, fault="crashed" if status else "", reason=(path.parent / "output.log").read_text()[-400:])


def kill_until_complete(
    path: Path,
    folder: Path,
    store: str,
    ranks: Sequence[int],
    kills: int,
    chance: random.Random,
    overrides: Sequence[str],
) -> Iterator[Outcome]:
    """Kill the run at random moments `kills` times, then let it complete."""
    sizes, acknowledged, done = cycle(ranks), 0, 0
    while done < kills:
        process = start(path, next(sizes), f"train.run={folder.name}", *overrides)
        early = chance.random() < 0.2  # a kill while it starts; else behind some lines of metrics
        fault, reason = awaited(process, folder, lines(folder) + (0 if early else chance.randrange(1, 5)))
        time.sleep(chance.uniform(0, STARTS if early else 0.3))  # a random moment
        over = process.poll() is not None
        if not over:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if over and not fault:  # it was complete before: the row has a kill too few
            return
        done += 1
        steps = [found.step for found in list_checkpoints(open_store(store), folder.name)]
        if not fault and max(steps, default=0) < acknowledged:
            fault, reason = "lost", f"the last checkpoint is of {steps}, step {acknowledged} was there before"
        acknowledged = max(steps, default=0)
        yield Outcome(fault=fault, reason=f"{folder.name}, kill {done}: {reason}")
    yield ended(path, next(sizes), f"train.run={folder.name}", *overrides)


def lines(folder: Path) -> int:
    """Lines in the run's metrics so far."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def awaited(process: "subprocess.Popen[bytes]", folder: Path, enough: int) -> tuple[str, str]:
    """Wait for so many lines of metrics, or for the end; fault and reason."""
    end = time.monotonic() + PATIENCE
    while lines(folder) < enough:
        if (status := process.poll()) is not None:
            text = (folder.parent / "output.log").read_text()[-400:]
            return ("crashed", f"it cannot be resumed, exit {status}: {text}") if status else ("", "")
        if time.monotonic() > end:
            return "hung", f"no step within {PATIENCE:.0f} s"
        time.sleep(0.005)
    return "", ""


def compared(whole: Path, killed: Path, *, same_size: bool) -> Outcome:
    """Samples (k, digests) and, at the same size, losses of the killed run against the run without kills."""
    if sorted(steps_of(whole)) != sorted(steps_of(killed)):
        return Outcome(count=0, fault="lost", reason=f"{killed.name} has steps {sorted(steps_of(killed))}")
    if not delivered(killed).select(CONTENT).equals(delivered(whole).select(CONTENT)):
        return Outcome(count=0, fault="mixed", reason=f"{killed.name} has other samples than {whole.name}")
    if same_size and exact(killed) != exact(whole):
        wrong = [(a, b) for a, b in zip(exact(killed), exact(whole), strict=True) if a != b]
        return Outcome(count=0, fault="mixed", reason=f"{killed.name} has other losses: {wrong[:2]}")
    return Outcome(count=0)
