"""A snapshot has the state of one moment: the optimizer waits for the copy, and training waits only there."""

import threading
import time
from pathlib import Path

import pytest
import torch

from fmscale.checkpoint.format.piece import Piece
from fmscale.checkpoint.saver import Saver
from fmscale.checkpoint.snapshot import snapshot
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.runtime.world import World
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Tensors, advance, pieces_at, restore_in, take_lease, wrong

TENSORS: Tensors = {(f"w{i}", state): ("float32", (64,)) for i in range(4) for state in ("weight", "exp_avg")}


class SlowCopy:
    """Copies stop half-way until released, so that an optimizer without a wait overtakes them."""

    def __init__(self) -> None:
        self.half = threading.Event()
        self._go = threading.Event()
        self._copy, self._copied = snapshot.copy_block, 0

    def __call__(self, target: torch.Tensor, one: snapshot.Copy) -> None:
        if self._copied == len(TENSORS) // 2:
            self.half.set()
            assert self._go.wait(20)
        self._copied += 1
        self._copy(target, one)

    def set(self) -> None:
        self._go.set()


@pytest.fixture
def slow_copy(monkeypatch: pytest.MonkeyPatch) -> SlowCopy:
    slow = SlowCopy()
    monkeypatch.setattr(snapshot, "copy_block", slow)
    return slow


def train_two_steps(url: str, slow_copy: SlowCopy, *, fenced: bool) -> list[Piece]:
    """Save step 1 with a slow copy and take step 2, with or without the fence; the live pieces afterwards."""
    whole = [(key, 0, 64) for key in TENSORS]
    pieces = pieces_at(TENSORS, whole, 1)
    saver = Saver(url, RUN, world=World(), lease=take_lease(url), config=CheckpointConfig())
    saver.save(1, pieces, {})
    assert slow_copy.half.wait(20)
    if fenced:
        threading.Timer(0.2, slow_copy.set).start()
        saver.fence()
    advance(pieces, 2)  # the optimizer writes
    slow_copy.set()
    assert [report.state for report in saver.close()] == ["acknowledged"]
    assert wrong(pieces, 2) == []
    return pieces


def torn(url: str) -> list[str]:
    """Pieces of the saved step 1 with values of another step."""
    [restored], [pieces] = restore_in(url, 1, tensors=TENSORS, seed=None)
    assert restored is not None
    return wrong(pieces, 1)


def test_with_the_fence_a_slow_copy_is_consistent(tmp_path: Path, slow_copy: SlowCopy, in_thread: None) -> None:
    train_two_steps(str(tmp_path / "store"), slow_copy, fenced=True)
    assert torn(str(tmp_path / "store")) == []


def test_without_the_fence_the_same_copy_is_torn(tmp_path: Path, slow_copy: SlowCopy, in_thread: None) -> None:
    train_two_steps(str(tmp_path / "store"), slow_copy, fenced=False)
    bad = torn(str(tmp_path / "store"))
    assert len(bad) == len(TENSORS) // 2, "half of one step and half of the next"


def test_save_returns_before_the_copy_and_the_fence_after_it(
    tmp_path: Path, slow_copy: SlowCopy, in_thread: None
) -> None:
    url = str(tmp_path / "store")
    saver = Saver(url, RUN, world=World(), lease=take_lease(url), config=CheckpointConfig())
    pieces = pieces_at(TENSORS, [(key, 0, 64) for key in TENSORS], 1)
    saver.save(1, pieces, {})
    assert saver.poll() == []
    threading.Timer(0.3, slow_copy.set).start()
    begin = time.perf_counter()
    saver.fence()
    assert time.perf_counter() - begin > 0.2
    begin = time.perf_counter()
    saver.fence()
    assert time.perf_counter() - begin < 0.1, "no copy is under way"
    [report] = saver.close()
    assert report.blocking_seconds > 0.2


def test_without_overlap_save_returns_after_the_copy(tmp_path: Path, slow_copy: SlowCopy, in_thread: None) -> None:
    url = str(tmp_path / "store")
    config = CheckpointConfig(overlap=False)
    saver = Saver(url, RUN, world=World(), lease=take_lease(url), config=config)
    pieces = pieces_at(TENSORS, [(key, 0, 64) for key in TENSORS], 1)
    threading.Timer(0.2, slow_copy.set).start()
    saver.save(1, pieces, {})
    advance(pieces, 2)
    saver.close()
    assert torn(url) == []
    assert open_store(url).list_names(f"runs/{RUN}/checkpoints") == ["0000000001-00001"]
