"""Saves on stores that fail, run full or lose answers; and processes that believe they still own the run."""

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmscale.checkpoint import commit, worker
from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.commit import Seen
from fmscale.checkpoint.job import Job, Settings
from fmscale.checkpoint.layout import plan_layout
from fmscale.checkpoint.memory import SharedMemory
from fmscale.checkpoint.names import checkpoint_folder, run_log
from fmscale.checkpoint.retention import references
from fmscale.checkpoint.seal import Seal
from fmscale.checkpoint.snapshot import checked
from fmscale.checkpoint.worker import Worker
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.backend import Backend
from fmscale.store.open import open_store
from fmscale.store.retire import retire
from tests.checkpoint.states import RUN, SMALL, Fleet, Tensors, assert_restores, lease, pieces_at
from tests.helpers.faulty_backend import Fault, FaultyBackend

QUICK = CheckpointConfig(grace_seconds=0.0, incremental=False, retries=2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the pauses."""
    monkeypatch.setattr(worker, "FIRST_PAUSE", 0.01)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, in_thread: None, quick: None) -> tuple[str, list[FaultyBackend]]:
    """A store in memory whose requests can be made to fail; the backends by rank, as workers open them."""
    made: list[FaultyBackend] = []

    def opened(url: str, **options: float) -> FaultyBackend:
        made.append(FaultyBackend(open_store(url, **options)))
        return made[-1]

    monkeypatch.setattr(worker, "open_store", opened)
    return f"memory://{uuid.uuid4().hex}", made


def states(reports: list[list]) -> list[list[str]]:
    return [[report.state for report in mine] for mine in reports]


WRITES = [
    ("put", "safetensors"),
    ("put", "crc32c"),
    ("put", "manifest"),
    ("put_if_absent", "seal"),
    ("put_if_absent", "log/"),
]


@pytest.mark.parametrize(
    "fault", [Fault.UNAVAILABLE, Fault.LOST, Fault.LATE, Fault.DUPLICATE, Fault.DUPLICATE_LAST]
)
@pytest.mark.parametrize(("method", "key"), WRITES)
def test_one_failed_request_does_not_fail_a_save(faulty, fault: Fault, method: str, key: str) -> None:
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


def one_save(url: str, epoch: int, step: int, memory: SharedMemory, attempt: int, sealed: bool) -> Job:
    """The job of a single rank's save of `STATE`, whose snapshot is put into `memory`."""
    pieces = pieces_at(STATE, [(key, 0, 5000) for key in STATE], step)
    layout = plan_layout([checked(piece) for piece in pieces])
    for place, number in enumerate(layout.order):
        data = pieces[number].tensor.numpy().tobytes()
        memory.view[layout.offsets[place] :][: len(data)] = data
    return Job(
        number=step,
        step=step,
        folder=checkpoint_folder(RUN, step, epoch),
        complete=False,
        meta={"step": step},
        rank_meta=None,
        ranges=layout.ranges,
        offsets=layout.offsets,
        files=layout.files,
        attempt=attempt,
        sealed=sealed,
    )


STATE: Tensors = {(f"w{i}", "weight"): ("float32", (5000,)) for i in range(3)}


def settings(url: str, epoch: int) -> Settings:
    return Settings(
        url=url,
        deadline=10.0,
        run=RUN,
        rank=0,
        world_size=1,
        epoch=epoch,
        keep_last=1,
        keep_every=None,
        grace_seconds=0.0,
        incremental=True,
        digests=True,
        retries=1,
        seal_seconds=10.0,
    )


def work(url: str, epoch: int, job: Job, memory: SharedMemory, backend: Backend) -> list[dict]:
    """Do a job in a process of its own, as far as it gets; what it said."""
    said: list[dict] = []
    worker.open_store = lambda *_, **__: backend
    alone = Worker(settings(url, epoch), said.append)
    alone.submit(job, memory.view)
    while not getattr(backend, "crashed", False) and not any(one["event"] == "done" for one in said):
        time.sleep(0.001)
    alone.close()
    return said


@pytest.mark.parametrize("when", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_at_any_request_is_made_good_by_the_next_process(faulty, when: Fault) -> None:
    """Each request of a save that also retires and deletes another is the last one of its process, in turn."""
    memory = SharedMemory(1 << 17)
    calls, number, crashes = 1, 0, 0
    while number < calls:
        url = f"memory://{uuid.uuid4().hex}"
        epoch = lease(url)
        work(url, epoch, one_save(url, epoch, 1, memory, 0, False), memory, open_store(url))
        dying = FaultyBackend(open_store(url), {number: when})
        said = work(url, epoch, one_save(url, epoch, 2, memory, 0, False), memory, dying)
        if dying.crashed:
            events = {one["event"] for one in said}
            if "committed" in events:
                assert_restores(url, 2, ranks=1, tensors=STATE)
            again = one_save(url, epoch, 2, memory, 1, "sealed" in events)
            said = work(url, epoch, again, memory, open_store(url))
            crashes += 1
        # A request that finds nothing raises before it can be the last one.
        calls = max(calls, len(dying.calls) + dying.crashed)
        number += 1
        assert [one["event"] for one in said][-2:] == ["committed", "done"]
        assert [one.step for one in list_checkpoints(open_store(url), RUN)] == [2]
        assert_restores(url, 2, ranks=1, tensors=STATE)
    assert crashes > 12


def test_a_store_that_stays_down_costs_the_save_and_not_the_run(faulty) -> None:
    url, backends = faulty
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.saved(1)
        for _ in range(QUICK.retries + 1):
            backends[1].inject(Fault.UNAVAILABLE, "put", "rank-00001")
        fleet.save(2)
        reports = fleet.settle()
        assert states(reports) == [["failed"], ["retrying", "retrying", "failed"]]
        assert "rank 1 did not save step 2" in reports[0][-1].reason
        assert fleet.savers[1]._metrics.total("ckpt_retried") == 2
        assert fleet.savers[1]._metrics.total("ckpt_failed") == 1
        assert_restores(url, 1)
        fleet.saved(3)
    assert_restores(url, 3)


def test_a_commit_whose_outcome_stays_unknown_keeps_its_files(faulty, monkeypatch) -> None:
    """The entry was written and no answer ever came: the checkpoint exists, and nothing of it may be deleted."""
    url, backends = faulty
    from fmscale.store import log

    monkeypatch.setattr(log, "ATTEMPTS", 1)
    with Fleet(url, ranks=1, config=CheckpointConfig(retries=0, grace_seconds=0.0)) as fleet:
        backend = backends[0]
        find = log.Log._find

        def blind(self: log.Log, number: int):
            if backend.calls and backend.calls[-1].fault is Fault.LOST:
                raise log.StoreUnavailable("nothing answers", remedy="")
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
            assert [(one.step, one.epoch) for one in found] == [(1, 1), (2, 2)]
    assert_restores(url, 2)


def test_left_overs_of_an_earlier_attempt_are_deleted(tmp_path: Path, in_thread: None, monkeypatch) -> None:
    """Rank 0 died before it committed; the requeued job's first commit cleans up after it."""
    url = str(tmp_path / "store")
    monkeypatch.setattr(Worker, "_finish", lambda self, job, seal: True)
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.save(1)
        assert all(saver.drain(20) for saver in fleet.savers)
    monkeypatch.undo()
    monkeypatch.setattr("fmscale.checkpoint.saver.ProcessWriter", _thread_writer())
    top = f"runs/{RUN}/checkpoints"
    assert open_store(url).list_names(top) == ["0000000001-00001"]
    Path(f"{url}/{top}/0000000001-00001/.fmscale-tmp-of-a-killed-writer").write_bytes(b"x" * 1000)
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        fleet.saved(1)
    assert open_store(url).list_names(top) == ["0000000001-00002"]
    assert not Path(f"{url}/{top}/0000000001-00001").exists()
    assert_restores(url, 1)


def _thread_writer() -> type:
    from fmscale.checkpoint.writer import ThreadWriter

    return ThreadWriter


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
    tmp_path: Path, in_thread: None, monkeypatch
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


BULKY: Tensors = {(f"w{i}", "weight"): ("float32", (512, 1024)) for i in range(4)}
"""8 MiB."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_fails_the_save_keeps_the_last_good_and_is_tried_again(
    small_disk: Path, in_thread: None, quick: None
) -> None:
    url = str(small_disk / "store")
    config = CheckpointConfig(grace_seconds=0.0, incremental=False, retries=1, keep_last=1)
    with Fleet(url, ranks=2, tensors=BULKY, config=config) as fleet:
        fleet.saved(1)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (12 << 20))
        fleet.save(2)
        reports = fleet.settle()
        assert "failed" in {report.state for mine in reports for report in mine}
        assert any("full" in report.reason for mine in reports for report in mine)
        assert_restores(url, 1, tensors=BULKY)
        ballast.unlink()
        fleet.saved(3)
    assert_restores(url, 3, tensors=BULKY)
    keys = [info.key for info in open_store(url).list_objects(f"runs/{RUN}/checkpoints")]
    assert {key.split("/")[3] for key in keys if key.endswith("safetensors")} == {"0000000003-00001"}


def test_space_that_comes_back_in_time_saves_the_save(small_disk: Path, in_thread: None) -> None:
    url = str(small_disk / "store")
    config = CheckpointConfig(grace_seconds=0.0, incremental=False, retries=3, keep_last=1)
    with Fleet(url, ranks=1, tensors=BULKY, config=config) as fleet:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (20 << 20))
        threading.Timer(0.3, ballast.unlink).start()
        fleet.save(1)
        [reports] = fleet.settle()
        assert [report.state for report in reports][-1] == "acknowledged"
        assert "full" in reports[0].reason
    assert_restores(url, 1, tensors=BULKY)


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


def test_no_memory_for_the_snapshot_fails_the_save_only(tmp_path: Path, in_thread: None, monkeypatch) -> None:
    from fmscale.checkpoint import snapshot

    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=QUICK) as fleet:
        memory = snapshot.SharedMemory

        def none(size: int) -> None:
            raise MemoryError("no pages")

        monkeypatch.setattr(snapshot, "SharedMemory", none)
        fleet.save(1)
        reports = fleet.settle()
        assert "no memory for the snapshot: no pages" in reports[0][0].reason
        monkeypatch.setattr(snapshot, "SharedMemory", memory)
        fleet.saved(2)
    assert_restores(url, 2)


def test_what_happens_to_other_entries_of_the_log_does_not_matter(
    memory_store: Backend, in_thread: None
) -> None:
    """Order logs write to the same log, also while a commit is on its way."""
    log = run_log(memory_store, RUN)
    epoch = lease(memory_store.url)
    with Fleet(memory_store.url, ranks=1, epoch=epoch) as fleet:
        for step in range(1, 6):
            fleet.save(step)
            log.append("ban", {"k": step}, epoch=epoch)
            fleet.settle()
    assert_restores(memory_store.url, 5)
    assert commit.KIND == "checkpoint"
    assert len(SMALL) > 3


def test_what_a_person_retired_is_written_again(tmp_path: Path, in_thread: None) -> None:
    """A save that refers to it fails, on all ranks; the next one is complete."""
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


def test_two_processes_of_rank_0_commit_a_save_once(memory_store: Backend, monkeypatch) -> None:
    """The append of one that is gone lands between the other's look at the log and its own append."""
    url, epoch = memory_store.url, lease(memory_store.url)
    job = one_save(url, epoch, 1, SharedMemory(1 << 17), 0, False)
    seal = Seal(step=1, folder=job.folder, rank=0, world_size=1, files=(), pieces=(), bytes=0, referenced=0)
    real, entries = commit.commit, []

    def overtaken(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(commit, "commit", real)
        entries.append(
            commit.commit_seals(run_log(memory_store, RUN), settings(url, epoch), job, [seal], Seen())
        )
        return real(*args, **options)

    monkeypatch.setattr(commit, "commit", overtaken)
    for _ in range(2):  # the second finds it at its first look
        log = run_log(memory_store, RUN)
        entries.append(commit.commit_seals(log, settings(url, epoch), job, [seal], Seen()))
    assert len({entry.number for entry in entries}) == 1
    assert len(entries) == 3
    assert len(list_checkpoints(memory_store, RUN)) == 1


def test_saves_in_quick_succession_refer_to_what_stays(tmp_path: Path, in_thread: None, monkeypatch) -> None:
    """keep_last 1 and slow commits: a save waits for the one before to be committed before it refers to it."""
    outcome = Worker._outcome
    monkeypatch.setattr(Worker, "_outcome", lambda *args: (time.sleep(0.1), outcome(*args))[1])
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
