"""Saves on stores that fail, become full or lose answers; and processes of a lost lease."""

import time
from pathlib import Path
from typing import Any

import pytest

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import KIND, run_log
from fmscale.checkpoint.persist.retention import references
from fmscale.checkpoint.persist.worker import Worker
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.retirement import retire
from fmscale.store.open import open_store
from tests.checkpoint.states import QUICK, RUN, SMALL, Fleet, Tensors, assert_restores, states, take_lease
from tests.helpers.faulty_backend import Fault, FaultyBackend

WRITES = [
    ("put", "safetensors"),
    ("put", "crc32c"),
    ("put", "manifest"),
    ("put_if_absent", "seal"),
    ("put_if_absent", "log/"),
]


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.LOST, Fault.LATE, Fault.DUPLICATE, Fault.DUPLICATE_LAST])
@pytest.mark.parametrize(("method", "key"), WRITES)
def test_one_failed_request_does_not_fail_a_save(
    faulty: tuple[str, list[FaultyBackend]], fault: Fault, method: str, key: str
) -> None:
    url, backends = faulty
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.saved(1)
        for backend in backends:
            backend.inject(fault, method, key)
        fleet.save(2)
        reports = fleet.settle()
        assert [mine[-1].state for mine in reports] == ["acknowledged", "acknowledged"], reports
        fleet.saved(3)
    assert [one.step for one in list_checkpoints(open_store(url), RUN)] == [1, 2, 3], "each save once"
    assert_restores(url, 3)
    assert_restores(url, 2, which=2)


def test_a_store_that_stays_down_costs_the_save_and_not_the_run(faulty: tuple[str, list[FaultyBackend]]) -> None:
    url, backends = faulty
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.saved(1)
        for _ in range(QUICK.retries + 1):
            backends[1].inject(Fault.UNAVAILABLE, "put", "rank-00001")
        fleet.save(2)
        reports = fleet.settle()
        assert states(reports) == [["failed"], ["retrying", "retrying", "failed"]]
        assert "rank 1 did not save step 2" in reports[0][-1].reason
        assert_restores(url, 1)
        fleet.saved(3)
    assert_restores(url, 3)


def test_a_commit_whose_outcome_stays_unknown_keeps_its_files(
    faulty: tuple[str, list[FaultyBackend]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry was written without an answer: the checkpoint exists, and none of its files may be deleted."""
    url, backends = faulty
    from fmscale.store.log import log

    monkeypatch.setattr(log, "ATTEMPTS", 1)
    with Fleet(url, ranks=1, config=CheckpointConfig(retries=0, grace_seconds=0.0)) as fleet:
        backend = backends[0]
        find = log.Log._find

        def blind(self: log.Log, number: int) -> Any:
            if backend.calls and backend.calls[-1].fault is Fault.LOST:
                raise StoreUnavailable("nothing answers", remedy="")
            return find(self, number)

        monkeypatch.setattr(log.Log, "_find", blind)
        backend.inject(Fault.LOST, "put_if_absent", "log/")
        fleet.save(1)
        [[report]] = fleet.settle()
        assert report.state == "failed"
        monkeypatch.setattr(log.Log, "_find", find)
    assert_restores(url, 1)


def test_a_zombie_cannot_commit(tmp_path: Path, in_thread: None, quick: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=QUICK) as old:
        old.saved(1)
        with Fleet(url, ranks=2, config=QUICK) as new:
            old.save(2)
            reports = old.settle()
            assert states(reports) == [["failed"], ["failed"]]
            assert reports[0][0].lease_lost
            assert "newer run" in reports[1][0].reason
            new.saved(2)
            found = list_checkpoints(open_store(url), RUN)
            assert [(one.step, one.lease) for one in found] == [(1, 1), (2, 2)]
    assert_restores(url, 2)


def test_left_overs_of_an_earlier_attempt_are_deleted(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 died before it committed; the requeued job's first commit cleans up after it."""
    url = str(tmp_path / "store")
    monkeypatch.setattr(Worker, "_commit", lambda self, job, seal: True)
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.save(1)
        assert all(saver.drain(20) for saver in fleet.savers)
    monkeypatch.undo()
    monkeypatch.setattr("fmscale.checkpoint.saver.ProcessWriter", Worker)
    top = f"runs/{RUN}/checkpoints"
    assert open_store(url).list_names(top) == ["0000000001-00001"]
    Path(f"{url}/{top}/0000000001-00001/.fmscale-tmp-of-a-killed-writer").write_bytes(b"x" * 1000)
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.saved(1)
    assert open_store(url).list_names(top) == ["0000000001-00002"]
    assert not Path(f"{url}/{top}/0000000001-00001").exists()
    assert_restores(url, 1)


def test_ranks_whose_pieces_do_not_fit_fail_the_save(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, seed=None, config=QUICK) as fleet:
        fleet.saved(1)
        held = fleet.pieces[1]
        fleet.pieces[1] = fleet.pieces[1][1:]
        fleet.save(2)
        reports = fleet.settle()
        assert states(reports) == [["failed"], ["failed"]]
        assert "leave a gap or overlap" in reports[0][0].reason
        fleet.pieces[1] = [*held, held[0]]
        fleet.save(3)
        assert states(fleet.settle()) == [["failed"], ["failed"]]
    assert_restores(url, 1)


def test_a_rank_that_never_seals_is_waited_for_until_the_deadline(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "store")
    config = CheckpointConfig(seal_seconds=1.0, grace_seconds=0.0)
    with Fleet(url, ranks=2, config=config) as fleet:
        saver = fleet.savers[1]
        monkeypatch.setattr(saver, "save", lambda *_, **__: None)
        fleet.save(1)
        [reports, _] = fleet.settle()
        assert "ranks [1] did not seal step 1" in reports[0].reason
    assert list_checkpoints(open_store(url), RUN) == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, in_thread: None, quick: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=QUICK) as fleet:
        (tmp_path / "store" / "runs" / RUN / "checkpoints").write_text("in the way")
        fleet.save(1)
        [reports] = fleet.settle()
        assert [report.state for report in reports] == ["retrying", "retrying", "failed"]
        assert "in the way" in reports[-1].reason
        (tmp_path / "store" / "runs" / RUN / "checkpoints").unlink()
        fleet.saved(2)
    assert_restores(url, 2)


def test_no_memory_for_the_snapshot_fails_the_save_only(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmscale.checkpoint.snapshot import snapshot

    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        memory = SharedMemory

        def none(size: int) -> None:
            raise MemoryError("no pages")

        monkeypatch.setattr(snapshot, "SharedMemory", none)
        fleet.save(1)
        reports = fleet.settle()
        assert "no memory for the snapshot: no pages" in reports[0][0].reason
        monkeypatch.setattr(snapshot, "SharedMemory", memory)
        fleet.saved(2)
    assert_restores(url, 2)


def test_what_happens_to_other_entries_of_the_log_does_not_matter(memory_store: Backend, in_thread: None) -> None:
    """Order logs write to the same log, also during a commit."""
    log = run_log(memory_store, RUN)
    lease = take_lease(memory_store.url)
    with Fleet(memory_store.url, ranks=1, lease=lease) as fleet:
        for step in range(1, 6):
            fleet.save(step)
            log.append("ban", {"k": step}, lease=lease)
            fleet.settle()
    assert_restores(memory_store.url, 5)
    assert KIND == "checkpoint"
    assert len(SMALL) > 3


def test_what_a_person_retired_is_written_again(tmp_path: Path, in_thread: None) -> None:
    """A save that refers to it fails, on all ranks; the next save is complete."""
    tensors: Tensors = {(f"w{i}", "weight"): ("float32", (200, 200)) for i in range(2)}
    url = str(tmp_path / "store")
    with Fleet(url, tensors=tensors, ranks=2, seed=None) as fleet:
        fleet.saved(1)
        store = open_store(url)
        retire(run_log(store, RUN), [list_checkpoints(store, RUN)[0].entry], references)
        fleet.save(2, changed=lambda piece: piece.name == "w0")
        reports = fleet.settle()
        assert states(reports) == [["failed"], ["failed"]]
        assert "were retired" in reports[0][0].reason
        [[first], [second]] = fleet.saved(3, changed=lambda piece: piece.name == "w0")
        assert first.bytes_referenced == second.bytes_referenced == 0
    assert_restores(url, 3, tensors={("w0", "weight"): tensors["w0", "weight"]}, partial=True)


def test_saves_in_quick_succession_refer_to_what_stays(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """keep_last 1 and slow commits: a save waits for the previous save's commit before it refers to that save."""
    entry = Worker._entry

    def slow(*args: Any) -> LogEntry:
        time.sleep(0.1)
        return entry(*args)

    monkeypatch.setattr(Worker, "_entry", slow)
    tensors: Tensors = {(f"w{i}", "weight"): ("float32", (200, 200)) for i in range(2)}
    url = str(tmp_path / "store")
    config = CheckpointConfig(keep_last=1, grace_seconds=0.0, complete_every=4)
    with Fleet(url, tensors=tensors, ranks=2, seed=None, config=config) as fleet:
        for step in range(1, 9):
            fleet.save(step, changed=lambda piece: piece.name == "w0")
        reports = fleet.settle()
        assert {one.state for mine in reports for one in mine} == {"acknowledged"}
        assert any(one.bytes_referenced for one in reports[0])
    assert_restores(url, 8, tensors={("w0", "weight"): tensors["w0", "weight"]}, partial=True)
