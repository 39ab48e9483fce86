"""Persist processes that die, and two that claim to be the same rank."""

import uuid
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import run_log, seal_key
from fmscale.checkpoint.format.seal import Seal, encode_seal
from fmscale.checkpoint.persist import commit
from fmscale.checkpoint.persist.commit import RunState
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.store.backends.protocol import Backend
from fmscale.store.log import retirement
from fmscale.store.open import open_store
from tests.checkpoint.jobs import STATE, one_save, settings, work
from tests.checkpoint.states import RUN, assert_restores, take_lease
from tests.helpers.faulty_backend import Fault, FaultyBackend


@pytest.mark.parametrize("when", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_at_any_request_is_made_good_by_the_next_process(
    faulty: tuple[str, list[FaultyBackend]], when: Fault
) -> None:
    """Each request of a save that also retires and deletes another save is in turn the last request of its process."""
    memory = SharedMemory(1 << 17)
    calls, number, crashes = 1, 0, 0
    while number < calls:
        url = f"memory://{uuid.uuid4().hex}"
        lease = take_lease(url)
        work(url, lease, one_save(url, lease, 1, memory, 0, False), memory, open_store(url))
        dying = FaultyBackend(open_store(url), {number: when})
        said = work(url, lease, one_save(url, lease, 2, memory, 0, False), memory, dying)
        if dying.crashed:
            events = {one["event"] for one in said}
            if "committed" in events:
                assert_restores(url, 2, ranks=1, tensors=STATE)
            again = one_save(url, lease, 2, memory, 1, "sealed" in events)
            said = work(url, lease, again, memory, open_store(url))
            crashes += 1
        # A request that finds nothing raises before it can be the last request.
        calls = max(calls, len(dying.calls) + dying.crashed)
        number += 1
        assert [one["event"] for one in said][-2:] == ["committed", "done"]
        assert [one.step for one in list_checkpoints(open_store(url), RUN)] == [2]
        assert_restores(url, 2, ranks=1, tensors=STATE)
    assert crashes > 12


def test_seals_are_fetched_together(memory_store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """No seal is answered before as many are asked for as are fetched at once."""
    size, lease = commit.FETCHES + 1, take_lease(memory_store.url)
    chosen = replace(settings(memory_store.url, lease), world_size=size)
    job = one_save(memory_store.url, lease, 1, SharedMemory(1 << 17), 0, False)
    seals = [
        Seal(step=1, folder=job.folder, rank=rank, world_size=size, files=(), pieces=(), bytes=0, referenced=0)
        for rank in range(size)
    ]
    for seal in seals[1:]:
        memory_store.put(seal_key(job.folder, seal.rank), encode_seal(seal))
    together, right = Barrier(commit.FETCHES, timeout=30), memory_store.get

    def get(key: str) -> bytes:
        together.wait()
        return right(key)

    monkeypatch.setattr(memory_store, "get", get)
    assert commit.gather_seals(memory_store, chosen, job, seals[0], lambda: False) == seals


def test_two_processes_of_rank_0_commit_a_save_once(memory_store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The append of a dead process lands between another process's read of the log and its own append."""
    url, lease = memory_store.url, take_lease(memory_store.url)
    job = one_save(url, lease, 1, SharedMemory(1 << 17), 0, False)
    seal = Seal(step=1, folder=job.folder, rank=0, world_size=1, files=(), pieces=(), bytes=0, referenced=0)
    real = retirement.commit
    entries: list[Any] = []

    def overtaken(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(commit, "commit", real)
        entries.append(commit.commit_seals(run_log(memory_store, RUN), settings(url, lease), job, [seal], RunState()))
        return real(*args, **options)

    monkeypatch.setattr(commit, "commit", overtaken)
    for _ in range(2):  # the second finds it at its first look
        log = run_log(memory_store, RUN)
        entries.append(commit.commit_seals(log, settings(url, lease), job, [seal], RunState()))
    assert len({entry.number for entry in entries}) == 1
    assert len(entries) == 3
    assert len(list_checkpoints(memory_store, RUN)) == 1
