"""SIGTERM and kill -9 at random times, from another process: the resumed run equals a run without them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.clusters_kills import PHASES, drawn, kills_of
from tests.train.runs import delivered, events_of, make_corpus, steps_of, write_config
from tests.train.test_resume import exact

FMSCALE = Path(sys.executable).with_name("fmscale")
STEPS = 14
OVERRIDES = (f"train.steps={STEPS}", "checkpoint.every=2")
PATIENCE = 120.0
"""Seconds that a step may take on a busy machine."""


def start(path: Path, ranks: int, *overrides: str) -> "subprocess.Popen[bytes]":
    """`fmscale train` in its own process group, alone or under torchrun."""
    command = [str(FMSCALE), "train", str(path), *OVERRIDES, *overrides]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        command = [*launcher, f"--nproc-per-node={ranks}", *command]
    with (path.parent / "output.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def finish(process: "subprocess.Popen[bytes]", path: Path) -> None:
    """Wait for the end of a run without a kill."""
    status = process.wait(PATIENCE)
    assert status == 0, (path.parent / "output.log").read_text()[-3000:]


def reached(folder: Path) -> int:
    """The last step in the metrics so far."""
    return max(steps_of(folder), default=0) if (folder / "metrics.jsonl").exists() else 0


def kill_after(process: "subprocess.Popen[bytes]", folder: Path, step: int, delay: float) -> bool:
    """Kill the whole group `delay` seconds after `step` was reached; False if the run was complete before."""
    deadline = time.monotonic() + PATIENCE
    while reached(folder) < step:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)
    time.sleep(delay)  # a random moment, not a wait for something
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def killed_until_complete(
    path: Path, folder: Path, sizes: Sequence[int], seed: int, overrides: Sequence[str] = (), steps: int = STEPS
) -> int:
    """Start the run at each size and kill it at a random moment, but let the last complete; the number of kills."""
    rng = random.Random(seed)
    done = 0
    name = f"train.run={folder.name}"
    for number, ranks in enumerate(sizes[:-1]):
        process = start(path, ranks, name, *overrides)
        target = min(reached(folder) + rng.randint(1, 4), steps - 2)
        done += kill_after(process, folder, target, rng.uniform(0, 0.4))
        assert number or done, (path.parent / "output.log").read_text()[-3000:]
    finish(start(path, sizes[-1], name, *overrides), path)
    return done


def check_equal(whole: Path, killed: Path, kills: int) -> None:
    assert exact(killed) == exact(whole)
    columns = ["k", "source", "row", "digest", "pieces"]
    assert delivered(killed).select(columns).equals(delivered(whole).select(columns))
    assert len(events_of(killed, "resumed")) >= min(kills, 1)


@pytest.mark.slow
def test_an_end_at_random_moments_of_an_ingest_and_a_run_is_gone_on_from(tmp_path: Path) -> None:
    """A drawn part of R4.kills: SIGTERM and SIGKILL, alone and at two ranks."""
    rows = list(kills_of(tmp_path, 6, seed=13))
    assert [one for one in rows if one["value"]] == []
    assert {one["phase"] for one in rows} == set(PHASES)
    assert {one["signal"] for one in rows} == {"SIGTERM", "SIGKILL"}
    # A run that no signal had reached would be equal too.
    assert len(rows) == 6
    assert events_of(tmp_path / "runs" / "killed-alone", "resumed")
    assert events_of(tmp_path / "runs" / "killed-torchrun", "resumed")


def test_each_phase_is_ended_by_both_signals_in_both_systems() -> None:
    kills = drawn(100, random.Random(1))
    assert Counter(one.number.name for one in kills) == {"SIGTERM": 50, "SIGKILL": 50}
    assert len({(one.phase, one.number, one.system) for one in kills}) == 24
    counts = Counter(one.phase for one in kills).values()
    assert max(counts) - min(counts) <= 1


@pytest.mark.slow
def test_a_stop_behind_the_end_of_a_run_is_no_failure(tmp_path: Path) -> None:
    path, log = write_config(tmp_path, make_corpus(tmp_path)), tmp_path / "output.log"
    process, deadline = start(path, 1), time.monotonic() + PATIENCE
    while "complete, after" not in log.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
