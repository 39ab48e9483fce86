"""kill -9 at random times, of the trainer and of persist processes: nothing acknowledged is lost, nothing mixed."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, assert_restores, process_of
from tests.checkpoint.trainer import STATE, drain_and_die, frozen, train

CONTEXT = multiprocessing.get_context("forkserver")


class Trainer:
    """A trainer process, and its messages."""

    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        # As in helpers.ranks: a process forked from one that has torch starts at once.
        multiprocessing.set_forkserver_preload(["torch.distributed"])
        self._pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=function, args=(theirs, *args))
        self.process.start()
        theirs.close()
        self.acknowledged = self.restored = 0
        self.pids: list[int] = []

    def listen(self, seconds: float = 60.0, *, until: str = "") -> None:
        """Read its messages for some seconds, or until the message `until`."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            if self._pipe.poll(min(rest, 0.2)) and until in self._take():
                return
        assert not until, f"it never said {until}"

    def kill(self) -> None:
        """kill -9, and its messages until then."""
        self.process.kill()
        self.process.join()
        with suppress(EOFError):
            while self._pipe.poll(0):
                self._take()

    def _take(self) -> dict[str, Any]:
        what: dict[str, Any] = self._pipe.recv()
        self.pids = what.get("pids", self.pids)
        self.restored = what.get("restored", self.restored)
        self.acknowledged = what.get("acknowledged", self.acknowledged)
        return what


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def campaign(url: str, rounds: int, seed: int) -> None:
    """Kill the trainer at a random time after its first new checkpoint, again and again, at changing sizes."""
    chance = random.Random(seed)
    acknowledged = 0
    for number in range(rounds):
        trainer = Trainer(train, url, 1 + number % 2)
        try:
            trainer.listen(until="acknowledged")
            assert trainer.restored >= acknowledged, "an acknowledged checkpoint was lost"
            trainer.listen(chance.uniform(0.0, 0.3))
        finally:
            trainer.kill()
        acknowledged = trainer.acknowledged
        end = time.monotonic() + 5
        while not all(gone(pid) for pid in trainer.pids):
            assert time.monotonic() < end, "a persist process outlives its trainer"
            time.sleep(0.01)
    found = list_checkpoints(open_store(url), RUN)
    assert found[-1].step >= acknowledged
    changing = {key: value for key, value in STATE.items() if not frozen(key[0])}
    assert_restores(url, found[-1].step, ranks=3, tensors=changing, partial=True)


def test_a_killed_trainer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    campaign(str(tmp_path / "store"), rounds=2, seed=1)


@pytest.mark.slow
def test_forty_killed_trainers_lose_nothing_acknowledged(tmp_path: Path) -> None:
    campaign(str(tmp_path / "store"), rounds=40, seed=2)


def kill_writers(url: str, kills: int, seed: int) -> None:
    """Kill one rank's persist process at a random time during each save; every save still succeeds."""
    chance = random.Random(seed)
    tensors = {key: value for key, value in STATE.items() if not frozen(key[0])}
    config = CheckpointConfig(keep_last=2, grace_seconds=0.0, retries=3)
    with Fleet(url, tensors=tensors, ranks=2, seed=None, config=config) as fleet:
        fleet.saved(1)
        for step in range(2, kills + 2):
            fleet.save(step)
            time.sleep(chance.uniform(0.0, 0.08))
            victim = fleet.savers[chance.randrange(2)]
            with suppress(ProcessLookupError):  # the process killed before has no successor yet
                os.kill(process_of(victim).pid, signal.SIGKILL)
            reports = fleet.settle()
            assert [mine[-1].state for mine in reports] == ["acknowledged", "acknowledged"], reports
        assert_restores(url, kills + 1, ranks=3, tensors=tensors)
        found = list_checkpoints(open_store(url), RUN)
        assert [one.step for one in found] == [kills, kills + 1]


def test_a_killed_persist_process_is_started_again_and_its_save_made_good(tmp_path: Path) -> None:
    kill_writers(str(tmp_path / "store"), kills=3, seed=3)


@pytest.mark.slow
def test_sixty_killed_persist_processes(tmp_path: Path) -> None:
    kill_writers(str(tmp_path / "store"), kills=60, seed=4)


def test_a_stop_signal_to_the_whole_job_does_not_end_the_persist_process(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1) as fleet:
        fleet.saved(1)
        pid = process_of(fleet.savers[0]).pid
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(pid, number)
        fleet.saved(2)
        assert process_of(fleet.savers[0]).pid == pid
    assert_restores(url, 2)


def test_when_asked_to_drain_it_finishes_although_the_trainer_dies(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    trainer = Trainer(drain_and_die, url)
    trainer.listen(until="pids")
    trainer.process.join()
    assert trainer.process.exitcode == -signal.SIGKILL
    end = time.monotonic() + 10
    while not gone(trainer.pids[0]):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert_restores(url, 2)
