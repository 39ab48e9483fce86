"""Memory of snapshots: allocated before the first save, and used without CUDA's pinning where that is refused."""

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from fmscale.checkpoint.format.piece import Piece
from fmscale.checkpoint.saver import Saver
from fmscale.checkpoint.snapshot import memory, snapshot
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError
from fmscale.runtime.world import World
from tests.checkpoint.states import RUN, take_lease

SIZE = 1 << 20


def pieces(value: float) -> list[Piece]:
    tensor = torch.full((SIZE,), value)
    return [Piece(name="w", state="weight", dtype="float32", shape=(SIZE,), start=0, tensor=tensor)]


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """No file, and so no anonymous memory file, may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("setting", "advised"), [("always [advise] never", True), ("always advise [never]", False)])
def test_huge_pages_are_asked_for_where_the_kernel_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, advised: bool
) -> None:
    monkeypatch.setattr(memory, "SHMEM_ENABLED", tmp_path / "shmem_enabled")
    (tmp_path / "shmem_enabled").write_text(setting)
    shared = memory.SharedMemory(8 << 20)
    address = np.frombuffer(shared.view, dtype=np.uint8).ctypes.data
    own = Path("/proc/self/smaps").read_text().partition(f"\n{address:x}-")[2].partition("VmFlags:")
    assert ("hg" in own[2].partition("\n")[0].split()) is advised
    assert own[0].partition("Rss:")[2].split()[0] == str(8 << 10), "all pages are there"
    monkeypatch.setattr(memory, "SHMEM_ENABLED", tmp_path / "none")
    other = memory.SharedMemory(8 << 20, os.dup(shared.descriptor))
    shared.view[5] = 7
    assert other.view[5] == 7


def made(url: Path, buffers: int = 2) -> Saver:
    config = CheckpointConfig(buffers=buffers)
    return Saver(str(url), RUN, world=World(), lease=take_lease(str(url)), config=config)


def test_a_lack_of_memory_shows_at_the_first_fence_with_a_remedy(tmp_path: Path, in_thread: None) -> None:
    saver = made(tmp_path / "store")
    with little_memory(SIZE):
        saver.prepare(pieces(1.0))
        with pytest.raises(ConfigError, match="rank 0 has no host memory for the snapshots") as caught:
            saver.fence()
    assert "0 of 2 snapshots of 0.0 GB: [Errno 27] File too large" in str(caught.value.found)
    assert "checkpoint.buffers: 1" in caught.value.remedy
    saver.fence()
    assert saver.close() == []


def test_a_saver_that_is_closed_early_hides_no_other_error(tmp_path: Path, in_thread: None) -> None:
    saver = made(tmp_path / "store")
    with little_memory(SIZE):
        saver.prepare(pieces(1.0))
        assert saver.close() == []


def test_memory_that_cannot_be_pinned_is_filled_beside_training(caplog: pytest.LogCaptureFixture) -> None:
    """CUDA's error 801, "not supported"; several snapshots say so once."""
    snapshot._warn.cache_clear()
    asked: list[tuple[int, str]] = []

    def refused(target: torch.Tensor, device: torch.device) -> int:
        asked.append((target.numel(), device.type))
        return 801

    with caplog.at_level(logging.WARNING):
        for value in (1.0, 2.0):
            slot = snapshot.SnapshotSlot(register=refused)
            slot.prepare(pieces(value))
            slot.prepare(pieces(value))
            slot.take(overlap=True)
            fence = Thread(target=slot.fence)
            fence.start()
            assert fence.is_alive()
            slot.finish()
            fence.join(20)
            assert slot.memory is not None
            assert slot.layout is not None
            saved = torch.frombuffer(slot.memory.view, dtype=torch.float32, count=SIZE, offset=slot.layout.offsets[0])
            assert saved.eq(value).all()
            del saved
            slot.release()
    assert len(asked) == 2
    assert [kind for _, kind in asked] == ["cpu", "cpu"]
    [record] = caplog.records
    assert "cudaHostRegister: error 801" in record.getMessage()
