"""Persist processes without a trainer: they finish possible saves, and end soon otherwise."""

import signal
import time
from pathlib import Path

import pytest

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import checkpoint_folder, refused_key
from fmscale.checkpoint.persist import heartbeat
from fmscale.checkpoint.persist.step import Save
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.open import open_store
from tests.checkpoint.jobs import put_between
from tests.checkpoint.persist.test_kills import Trainer, gone
from tests.checkpoint.states import RUN, Fleet, assert_restores, states, worker_of
from tests.checkpoint.trainer import STATE, die_while_copying, drain_and_die_alone

PATIENT = CheckpointConfig(grace_seconds=0.0, seal_seconds=1800.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.5)


@pytest.mark.parametrize("left", [0, 1])
def test_one_that_is_left_alone_gives_up_a_rank_that_is_silent(
    tmp_path: Path, in_thread: None, hasty: None, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=PATIENT) as fleet:
        fleet.saved(1)
        monkeypatch.setattr(fleet.savers[1 - left], "save", lambda *_, **__: None)
        fleet.save(2)
        assert not fleet.savers[left].drain(0.8), "while its trainer lives it waits"
        worker_of(fleet.savers[left]).left_alone()
        reports = fleet.settle(10.0)
        assert "no sign of life" in reports[left][0].reason
        assert worker_of(fleet.savers[left]).idle
    assert_restores(url, 1)
    assert [one.step for one in list_checkpoints(open_store(url), RUN)] == [1]


@pytest.mark.parametrize("slow", [0, 1])
def test_one_that_is_left_alone_waits_for_a_rank_that_is_at_work(
    tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch, slow: int
) -> None:
    """Twice as long as for a silent rank, which takes longer than the pauses of a busy disk."""
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 2.0)
    url = str(tmp_path / "store")

    def late(save: Save) -> None:
        if save.settings.rank == slow:
            save.closing.wait(4.0)

    put_between(monkeypatch, late)
    with Fleet(url, ranks=2, config=PATIENT) as fleet:
        workers = [worker_of(saver) for saver in fleet.savers]
        workers[slow].drain()
        workers[1 - slow].left_alone()
        fleet.save(1)
        assert states(fleet.settle(20.0)) == [["acknowledged"], ["acknowledged"]]
    assert_restores(url, 1)


def ended(trainer: Trainer, seconds: float) -> float:
    """Seconds until all persist processes of a killed trainer have ended."""
    trainer.listen(until="pids")
    trainer.process.join()
    assert trainer.process.exitcode == -signal.SIGKILL
    begin = time.monotonic()
    while not all(gone(pid) for pid in trainer.pids):
        assert time.monotonic() - begin < seconds
        time.sleep(0.01)
    return time.monotonic() - begin


def test_a_trainer_killed_in_the_middle_of_its_copy_leaves_no_process_and_no_half_checkpoint(
    tmp_path: Path,
) -> None:
    url = str(tmp_path / "store")
    ended(Trainer(die_while_copying, url), 10.0)
    assert_restores(url, 1, tensors=STATE)
    folder = Path(url) / checkpoint_folder(RUN, 2, 1)
    assert list(folder.glob("rank-*")) == []


@pytest.mark.slow
def test_an_orphan_whose_peers_are_gone_ends_within_seconds(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    seconds = ended(Trainer(drain_and_die_alone, url), 40.0)
    assert seconds > heartbeat.SILENT_SECONDS / 2, "it must not give up a rank that may be at work"
    assert_restores(url, 1)
    store = open_store(url)
    assert b"no sign of life" in store.get(refused_key(checkpoint_folder(RUN, 2, 1), 0))
