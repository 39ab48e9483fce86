"""A store that becomes full during a checkpoint's write."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fmscale.checkpoint.format.piece import Piece
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, Tensors, assert_restores
from tests.helpers.disks import mounted

BULKY: Tensors = {(f"w{i}", "weight"): ("float32", (512, 1024)) for i in range(4)}
"""8 MiB."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "24m") as folder:
        yield folder


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


def is_of(name: str, piece: Piece) -> bool:
    return piece.name == name


def test_an_incremental_save_needs_room_for_what_changed_only(small_disk: Path, in_thread: None, quick: None) -> None:
    """8 MiB are stored; 5 MiB are left for two saves that change 2 MiB each."""
    url = str(small_disk / "store")
    config = CheckpointConfig(grace_seconds=0.0, retries=0, keep_last=1)
    with Fleet(url, ranks=2, seed=None, tensors=BULKY, config=config) as fleet:
        fleet.saved(1)
        free = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - (5 << 20)))
        for step in (2, 3):
            reports = fleet.saved(step, changed=partial(is_of, f"w{step}"))
            assert [report.bytes_written for [report] in reports] == [1 << 20] * 2
