"""The contract of a save, on every kind of store, with ranks in threads."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.checkpoint.format.piece import Piece, whole
from fmscale.checkpoint.persist.commit import commit_seals
from fmscale.checkpoint.saver import Saver
from fmscale.checkpoint.snapshot import snapshot
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.checkpoint.jobs import one_save, put_between, settings
from tests.checkpoint.states import (
    RUN,
    SMALL,
    Fleet,
    Tensors,
    assert_restores,
    process_of,
    restore_in,
    take_lease,
    values,
)


def test_what_is_saved_is_restored_on_every_store(store_url: str, in_thread: None) -> None:
    with Fleet(store_url, ranks=3) as fleet:
        for step in (10, 20):
            for rank, reports in enumerate(fleet.saved(step)):
                [report] = reports
                assert report.step == step
                assert report.entry is not None
                assert report.bytes_written + report.bytes_referenced == sum(
                    piece.tensor.nbytes for piece in fleet.pieces[rank]
                )
                assert 0 < report.snapshot_seconds <= report.sealed_seconds <= report.durable_seconds
    restored = assert_restores(store_url, 20, ranks=2)
    for one in restored:
        assert one.meta == {"step": 20}
        assert one.rank_meta == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert one.passed_over == ()
    assert_restores(store_url, 10, ranks=1, which=10)


def test_the_persist_process_saves_and_ends_with_the_saver(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2) as fleet:
        fleet.saved(1)
        fleet.saved(2)
        processes = [process_of(saver)._process for saver in fleet.savers]
    assert all(process.wait(5) is not None for process in processes)
    assert_restores(url, 2)


def test_a_run_without_checkpoints_restores_nothing(memory_store: Backend) -> None:
    assert restore_in(memory_store.url, 2)[0] == [None, None]
    with pytest.raises(ConfigError, match="no such checkpoint"):
        restore_in(memory_store.url, 1, which=7)


def test_a_piece_that_is_none_is_refused(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    saver = Saver(url, RUN, world=World(), lease=take_lease(url), config=CheckpointConfig())
    good: dict[str, Any] = {"name": "w", "dtype": "float32", "shape": (4, 4)}
    for bad, words in (
        (Piece(**good, tensor=torch.zeros(4, 4)), r"shape \(4, 4\)"),
        (Piece(**good, tensor=torch.zeros(8)[::2]), "strides"),
        (Piece(**good, tensor=torch.zeros(8, dtype=torch.int32)), "said to be float32"),
        (Piece(**good, start=10, tensor=torch.zeros(8)), "ends at element 18"),
    ):
        with pytest.raises(ConfigError, match=words):
            saver.save(1, [bad], {})
    saver.save(2, [whole("w", torch.ones(4, 4))], {}, wait=True)
    assert [report.state for report in saver.close()] == ["acknowledged"]


def test_while_one_is_written_the_next_is_skipped_or_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    put_between(monkeypatch, lambda _: held.wait(20))
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1) as fleet:
        fleet.save(1)
        fleet.save(2, wait=False)
        threading.Timer(0.2, held.set).start()
        fleet.save(3, wait=True)
        [reports] = fleet.settle()
        assert {report.step: report.state for report in reports} == {
            1: "acknowledged",
            2: "skipped",
            3: "acknowledged",
        }
    assert_restores(url, 3)
    assert_restores(url, 1, which=1)


def test_a_save_that_is_sealed_again_leaves_the_memory_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A persist process that died after the seal is started again, and seals again."""
    held = threading.Event()
    from fmscale.checkpoint.persist import worker

    monkeypatch.setattr(worker, "commit_seals", lambda *args: (held.wait(20), commit_seals(*args))[1])
    put_between(monkeypatch, lambda save: save.job.step == 1 or held.wait(20))
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=CheckpointConfig(incremental=False)) as fleet:
        [saver] = fleet.savers
        fleet.save(1)
        fleet.save(2)  # waits until the first is sealed
        saver._on_event({"job": 0, "event": "sealed", "bytes": 1, "referenced": 0})
        fleet.save(3, wait=False)
        held.set()
        [reports] = fleet.settle()
        assert {report.step: report.state for report in reports} == {
            1: "acknowledged",
            2: "acknowledged",
            3: "skipped",
        }
    assert_restores(url, 2)


def test_one_rank_that_skips_ends_the_save_of_all_at_once(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=3) as fleet:
        fleet.saved(1)
        busy = fleet.savers[1]._slots[0]
        busy.busy = True
        fleet.save(2, wait=False)
        busy.busy = False
        reports = fleet.settle()
        assert [mine[-1].state for mine in reports] == ["failed", "skipped", "failed"]
        assert "rank 1" in reports[0][-1].reason
        assert "rank 1" in reports[2][-1].reason
        fleet.saved(3)
    assert_restores(url, 3)
    left = [info.key for info in open_store(url).list_objects(f"runs/{RUN}/checkpoints/0000000002-00001")]
    assert [key.rsplit("/", 1)[1] for key in left] == ["failed.json", "refused-00001.json"]


def test_only_what_changed_is_written_again(tmp_path: Path, in_thread: None) -> None:
    big: Tensors = {(f"w{i}", "weight"): ("float32", (300, 100)) for i in range(10)}
    url = str(tmp_path / "store")
    config = CheckpointConfig(complete_every=4, grace_seconds=0.0, keep_last=2)
    with Fleet(url, tensors=big, ranks=1, seed=None, config=config) as fleet:
        written = []
        for step in range(1, 6):
            [[report]] = fleet.saved(step, changed=lambda piece: piece.name == "w3")
            written.append((report.bytes_written, report.bytes_referenced))
        size = 120_000
        assert written == [
            (10 * size, 0),
            (size, 9 * size),
            (size, 9 * size),
            (size, 9 * size),
            (10 * size, 0),
        ]
        found = list_checkpoints(open_store(url), RUN)
        assert [one.step for one in found] == [4, 5]
    for which in (4, 5):
        checkpoint = open_checkpoint(f"{url}#{RUN}@{which}")
        assert torch.equal(checkpoint.tensor("w3").view(-1), values(("w3", "weight"), "float32", which, 0, 30_000))
        assert torch.equal(checkpoint.tensor("w4").view(-1), torch.zeros(30_000))
        steps = [int(one.key.split("/")[3].split("-")[0]) for one in checkpoint.manifest.files]
        assert steps == ([1, 4] if which == 4 else [5]), "references name the file itself: no chains"


def test_blocking_and_bytes_are_reported(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    saver = Saver(url, RUN, world=World(), lease=take_lease(url), config=CheckpointConfig())
    tensor = torch.ones(1000)
    saver.prepare([whole("w", tensor)])
    for step in range(3):
        saver.save(step, [whole("w", tensor)], {}, wait=True)
        saver.fence()
    reports = saver.close()
    assert [(report.step, report.state) for report in reports] == [(step, "acknowledged") for step in range(3)]
    assert all(report.blocking_seconds > 0 for report in reports)
    assert sum(report.bytes_written for report in reports) > 0


def test_states_that_forward_changes_are_copied_at_once(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    copy = snapshot.copy_block
    monkeypatch.setattr(snapshot, "copy_block", lambda target, one: (one.moving or go.wait(20), copy(target, one))[1])
    url = str(tmp_path / "store")
    tensors: Tensors = {("w", "weight"): ("float32", (8,)), ("seen", "buffer"): ("float32", (8,))}
    with Fleet(url, tensors=tensors, ranks=1) as fleet:
        fleet.save(5)
        for piece in fleet.pieces[0]:
            if piece.state == "buffer":
                piece.tensor.fill_(-1)  # the next forward
        go.set()
        fleet.settle()
    assert_restores(url, 5, ranks=1, tensors=tensors)


def test_the_small_state_has_every_kind(tmp_path: Path) -> None:
    assert {dtype for dtype, _ in SMALL.values()} >= {"float32", "bfloat16", "int64", "bool"}


def test_meta_that_is_no_json_is_refused(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1) as fleet:
        metas: tuple[Any, ...] = ({"x": float("nan")}, {"x": torch.zeros(1)}, {1: {2}})
        for meta in metas:
            with pytest.raises(ConfigError, match="is no JSON"):
                fleet.savers[0].save(1, fleet.pieces[0], meta)
        fleet.saved(1)


def test_a_commit_that_is_retired_before_a_rank_hears_of_it_was_a_commit(
    memory_store: Backend, in_thread: None
) -> None:
    """keep_last 1: rank 0 may commit the next save and retire this save between two polls of another rank."""
    from fmscale.checkpoint.format.names import run_log
    from fmscale.checkpoint.persist.commit import RunState, await_commit

    with Fleet(memory_store.url, ranks=1, config=CheckpointConfig(keep_last=1, grace_seconds=0.0)) as fleet:
        first = fleet.saved(1)[0][0].entry
        fleet.saved(2)
    assert [one.step for one in list_checkpoints(memory_store, RUN)] == [2]
    job = one_save(memory_store.url, 1, 1, SharedMemory(1 << 17), 0, False)
    log = run_log(memory_store, RUN)
    entry = await_commit(log, settings(memory_store.url, 1), job, RunState(), lambda: False)
    assert entry.number == first
