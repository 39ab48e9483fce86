"""`fmscale ingest` of a folder that grows, killed at random moments, beside a dataset that saw no kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.campaign.growing import Growing, differences
from benchmarks.campaign.outcome import Outcome
from benchmarks.harness import ROOT
from fmscale.data.ingest import ingest
from tests.helpers.s3_server import die_with_parent

FMSCALE = str(Path(sys.executable).with_name("fmscale"))
PATIENCE = 60.0
"""Seconds that an ingest may take on a busy machine."""


def ingest_kills(folder: Path, target: int, seed: int) -> Iterator[Outcome]:
    """After each commit the dataset equals the reference; at the end both hold each document of the folder once."""
    chance = random.Random(seed)
    growing = Growing(folder / "in", chance)
    store, reference = folder / "store", folder / "reference"
    kills, seconds, replace, small = 0, 2.0, False, False
    while kills < target:
        began = time.monotonic()
        process = start(growing.path, store, replace=replace, small=small)
        killed = kill(process, store, chance, seconds)
        seconds = seconds if killed else max(0.5, 0.5 * seconds + 0.5 * (time.monotonic() - began))
        kills += killed
        if not killed and process.returncode:
            yield Outcome(
                count=0, fault="crashed", reason=f"kill {kills}: {(folder / 'errors.log').read_text()[-400:]}"
            )
            return
        fault, reason = followed(growing.path, store, reference, replace=replace)
        yield Outcome(count=int(killed), fault=fault, reason=f"kill {kills}, seed {seed}: {reason}")
        if not killed:
            replace = False
        if chance.random() < 0.6:  # else the same job goes on
            growing.grow()
            small = chance.random() < 0.5
            if not replace and chance.random() < 0.3:
                growing.change()
                replace = True
    process = start(growing.path, store, replace=True, small=False)
    if process.wait(PATIENCE):
        yield Outcome(count=0, fault="crashed", reason=(folder / "errors.log").read_text()[-400:])
    followed(growing.path, store, reference, replace=True)
    fault, reason = differences(store, reference, growing)
    yield Outcome(count=0, fault=fault, reason=f"at the end, seed {seed}: {reason}")


def start(source: Path, store: Path, *, replace: bool, small: bool) -> "subprocess.Popen[bytes]":
    """The ingest with two writers: the command, or with `small` the same job in work units of 1.5 kB."""
    words = ["--store", str(store), "--dataset", "d", "--tokenizer", "bytes", "--heldout", "0.3", "--workers", "2"]
    command = [FMSCALE, "ingest", str(source), *words, *(["--replace"] if replace else [])]
    if small:
        job = {"paths": [str(source)], "store": str(store), "dataset": "d", "tokenizer": "bytes", "heldout": 0.3}
        job |= {"workers": 2, "unit_bytes": 1500, "replace": replace}
        command = [sys.executable, "-m", "tests.helpers.ingester", "run", json.dumps(job)]
    with (store.parent / "errors.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True, preexec_fn=die_with_parent
        )


def kill(process: "subprocess.Popen[bytes]", store: Path, chance: random.Random, seconds: float) -> bool:
    """Kill the job, its first process, or a writer, at a random moment of its time or behind a random number of writes;
    False if it ended before.
    """
    end = time.monotonic() + chance.uniform(0.2, 1.0) * seconds
    enough = files(store) + chance.randrange(40) if chance.random() < 0.6 else sys.maxsize
    late = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < (end if enough == sys.maxsize else late):
        if files(store) >= enough > 0:
            time.sleep(chance.uniform(0, 0.01))  # a random moment behind the write
            break
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    how = chance.choice(("group", "group", "first", "writer"))
    writers = psutil.Process(process.pid).children()
    if how == "writer" and writers:
        chance.choice(writers).kill()
        process.wait(PATIENCE)
    elif how == "first":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def files(store: Path) -> int:
    """Number of the dataset's files so far."""
    return sum(len(names) for _, _, names in os.walk(store / "datasets"))


def commits(store: Path) -> int:
    """Number of the dataset's log entries."""
    return len(list((store / "datasets/d/log").glob("0*.json")))


def followed(source: Path, store: Path, reference: Path, *, replace: bool) -> tuple[str, str]:
    """Ingest the folder into the reference too if the store has a commit more; fault and reason of a difference."""
    if commits(store) == commits(reference):
        return "", ""
    options = {"dataset": "d", "tokenizer": "bytes", "heldout": 0.3, "workers": 1, "replace": replace}
    ingest([str(source)], store=str(reference), **options)  # type: ignore[arg-type]
    if commits(store) != commits(reference):
        return "mixed", f"{commits(store)} entries instead of {commits(reference)}"
    return differences(store, reference, None)
