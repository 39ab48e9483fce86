"""kill -9 at random times, from another process, also during a save: the resumed run equals a run without kills."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

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
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_at_random_times(tmp_path: Path, ranks: int) -> None:
    path = write_config(tmp_path, make_corpus(tmp_path))
    finish(start(path, ranks, "train.run=whole"), path)
    # Without lines of progress records are written for saves alone.
    kills = killed_until_complete(path, tmp_path / "killed", [ranks] * 5, ranks, ("train.log_every=1000",))
    check_equal(tmp_path / "whole", tmp_path / "killed", kills)
