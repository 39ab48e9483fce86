"""A checkpoint has the state of one step although the optimizer would overtake its copy: the real loop, engine and
saver.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.checkpoint.checkpoint import open_checkpoint
from tests.helpers.ranks import run_ranks
from tests.train.runs import make_corpus, train_here, write_config


def train_with_late_copies(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> Any:
    """Copies begin when training waits for them at the fence, or when the optimizer has written without waiting.

    The state at each save, by step: (name, state, start, values).
    """
    from fmscale.checkpoint.saver import Saver
    from fmscale.checkpoint.snapshot import snapshot
    from fmscale.train.engine.deepspeed import DeepSpeedEngine

    go = threading.Event()
    held: dict[int, Any] = {}
    copy, fence, save, step = (
        snapshot.copy_block,
        snapshot.SnapshotSlot.fence,
        Saver.save,
        DeepSpeedEngine.step,
    )

    def late_copy(*args: Any) -> None:
        assert go.wait(60)
        copy(*args)

    def fenced(self: Any) -> None:
        go.set()
        fence(self)

    def saved(self: Any, number: int, pieces: Any, *args: Any, **options: Any) -> None:
        held[number] = [(p.name, p.state, p.start, p.tensor.clone()) for p in pieces]
        go.clear()
        save(self, number, pieces, *args, **options)

    def stepped(self: Any, *args: Any) -> Any:
        update = step(self, *args)
        go.set()
        return update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "copy_block", late_copy)
        patch.setattr(snapshot.SnapshotSlot, "fence", fenced)
        patch.setattr(Saver, "save", saved)
        patch.setattr(DeepSpeedEngine, "step", stepped)
        train_here(rank, size, path, overrides)
    return held


def test_the_step_after_a_save_waits_until_the_state_is_copied(tmp_path: Path) -> None:
    store = make_corpus(tmp_path)
    path = write_config(tmp_path, store)
    overrides = ("train.steps=3", "checkpoint.every=1")
    [held] = run_ranks(train_with_late_copies, 1, str(path), overrides, timeout=120)
    assert sorted(held) == [1, 2, 3]
    found = open_checkpoint(f"{store}#run@1")
    torn = [
        (name, state)
        for name, state, start, values in held[1]
        if not torch.equal(found.tensor(name, state=state).view(-1)[start : start + len(values)], values)
    ]
    assert torn == []
    assert any(not torch.equal(before[3], after[3]) for before, after in zip(held[1], held[2], strict=True)), (
        "the optimizer wrote nothing that a copy could be torn by"
    )
