"""A further step between the files and the seal: it runs in its place, sees the files, and keeps the worker's rules."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import SUMS, data_key, seal_key
from fmscale.checkpoint.persist import worker
from fmscale.checkpoint.persist.rank_part import store_seal, write_files
from fmscale.checkpoint.persist.step import PersistStep, Save
from fmscale.checkpoint.persist.worker import STEPS, Worker
from fmscale.checkpoint.snapshot.copy_progress import EVERYTHING, SaveFailed
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import StoreUnavailable
from fmscale.store.digest import chunk_checksums
from fmscale.store.open import open_store
from tests.checkpoint.jobs import one_save, put_between, settings
from tests.checkpoint.states import RUN, Fleet, assert_restores, states, take_lease

CONFIG = CheckpointConfig(grace_seconds=0.0, incremental=False, retries=2)


def test_it_sees_the_durable_files_before_any_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a step that spreads the files over peers would: all that it needs is in `save`."""
    seen: dict[tuple[int, int], list[str]] = {}

    def look(save: Save) -> None:
        assert save.seal is not None
        key = seal_key(save.job.folder, save.settings.rank)
        assert not save.backend.exists(key), "rank 0 must not count this rank yet"
        for file in save.seal.files:
            sums = chunk_checksums(save.backend.get(file.key)).astype("<u4").tobytes()
            assert save.backend.get(file.key + SUMS) == sums
        seen[save.job.step, save.settings.rank] = [file.key for file in save.seal.files]

    put_between(monkeypatch, look)
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=CONFIG) as fleet:
        for step in (1, 2):
            fleet.saved(step)
    folders = {one.step: one.folder for one in list_checkpoints(open_store(url), RUN)}
    assert seen == {(step, rank): [data_key(folders[step], rank, 0)] for step in (1, 2) for rank in (0, 1)}
    assert_restores(url, 2)


def failing(error: Exception, times: int, step: int, rank: int, ran: list[int]) -> PersistStep:
    """A step that raises in its first calls for a step of one rank."""

    def fail(save: Save) -> None:
        if (save.job.step, save.settings.rank) == (step, rank):
            ran.append(save.settings.rank)
            if len(ran) <= times:
                raise error

    return fail


def test_its_failure_that_may_pass_is_repeated_from_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    ran: list[int] = []
    put_between(monkeypatch, failing(StoreUnavailable("no peer answers"), 2, 1, 1, ran))
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=CONFIG) as fleet:
        fleet.save(1)
        assert states(fleet.settle()) == [["acknowledged"], ["retrying", "retrying", "acknowledged"]]
    assert len(ran) == 3
    assert_restores(url, 1)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(StoreUnavailable("no peer answers"), 3), (SaveFailed("no peer answers"), 1), (ValueError("no peer answers"), 1)],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_its_lasting_failure_ends_the_save_on_all_ranks_and_keeps_the_last_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, error: Exception, attempts: int, rank: int
) -> None:
    ran: list[int] = []
    put_between(monkeypatch, failing(error, 9, 2, rank, ran))
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=CONFIG) as fleet:
        fleet.saved(1)
        fleet.save(2)
        reports = fleet.settle(20.0)
        assert [mine[-1].state for mine in reports] == ["failed", "failed"]
        assert all("no peer answers" in mine[-1].reason for mine in reports)
        assert [report.state for report in reports[rank]].count("retrying") == attempts - 1 == len(ran) - 1
        assert [one.step for one in list_checkpoints(open_store(url), RUN)] == [1]
        fleet.saved(3)
    assert_restores(url, 3)


def submitted(
    url: str, lease: int, steps: tuple[PersistStep, ...], attempt: int, done: Callable[[list[str]], bool]
) -> tuple[Worker, list[str]]:
    """Work on the save of step 1 until its events are `done`; the worker, and the events."""
    said: list[str] = []
    heard = threading.Condition()

    def tell(event: dict[str, object]) -> None:
        with heard:
            said.append(str(event["event"]))
            heard.notify()

    alone = Worker(settings(url, lease), tell, steps)
    memory = SharedMemory(1 << 17)
    alone.submit(one_save(url, lease, 1, memory, attempt, False), memory)
    alone.copied(1, EVERYTHING)
    with heard:
        assert heard.wait_for(lambda: done(said), 20.0)
    return alone, said


def test_a_seal_of_a_dead_process_stands_for_all_steps(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    lease = take_lease(url)
    ran: list[str] = []

    def note(save: Save) -> None:
        ran.append(save.job.folder)

    for attempt in (0, 1):
        alone, said = submitted(url, lease, (write_files, note, store_seal), attempt, lambda said: "done" in said)
        assert said == ["sealed", "committed", "done"]
        alone.close()
    assert len(ran) == 1


def test_it_ends_with_the_worker(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    waiting, told = threading.Event(), threading.Event()

    def wait(save: Save) -> None:
        waiting.set()
        assert save.closing.wait(60.0)
        told.set()
        raise SaveFailed("the worker ends")

    alone, _ = submitted(url, take_lease(url), (write_files, wait, store_seal), 0, lambda _: waiting.wait(20.0))
    alone.close()
    assert told.is_set()
    assert list_checkpoints(open_store(url), RUN) == []


def test_the_order_is_in_one_place_and_the_seal_is_the_last() -> None:
    assert (write_files, store_seal) == worker.STEPS
    with pytest.raises(AssertionError, match="rank 0 may commit after the seal"):
        Worker(settings("memory://order", 1), print, (*STEPS, lambda save: None))
