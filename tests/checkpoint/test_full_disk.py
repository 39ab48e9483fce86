"""A store that runs full while a checkpoint is written."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

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
