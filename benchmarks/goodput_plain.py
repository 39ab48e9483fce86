"""The peers of `fmscale bench goodput`: a plain loop over the same model and text, which saves with torch.save, or with
torch's distributed checkpoint asynchronously: python -m benchmarks.goodput_plain FOLDER save|dcp SECONDS.

Each step appends its number to FOLDER/steps. A start goes on from the newest complete checkpoint. Saves are as far
apart as is best with a fault every SECONDS: sqrt(2 * seconds that a save blocks * SECONDS), Young 1974.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from benchmarks.goodput_run import BATCH, LENGTH, corpus_bytes, plain_model

VOCAB = 256
FIRST_SAVE = 8
"""Steps before the first save, which tells how long a save takes."""


def rows(text: np.ndarray, step: int) -> torch.Tensor:
    """The rows of a step, int64 [B, T + 1]: the same ones after a restart."""
    starts = np.random.default_rng(step).integers(0, len(text) - LENGTH - 1, BATCH)
    return torch.from_numpy(np.stack([text[at : at + LENGTH + 1] for at in starts]).astype(np.int64))


class ByTorchSave:
    """Writes a file beside, flushes it, renames it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.pt"

    def newest(self) -> dict[str, Any] | None:
        """The saved state."""
        return torch.load(self._path) if self._path.exists() else None

    def save(self, state: dict[str, Any]) -> None:
        """Save, and return when the state is on disk."""
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


class ByDcp:
    """`torch.distributed.checkpoint.async_save` into a folder a step; a save that still runs is waited for."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self._folder = folder / "dcp"
        self._running: Any = None
        self._like = state
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]

    def newest(self) -> dict[str, Any] | None:
        """The newest complete state: DCP writes its .metadata last."""
        from torch.distributed import checkpoint

        found = sorted(self._folder.glob("*/.metadata"), key=lambda path: int(path.parent.name))
        if not found:
            return None
        checkpoint.load(self._like, checkpoint_id=found[-1].parent)
        return self._like

    def save(self, state: dict[str, Any]) -> None:
        """Begin to save; return when the state is copied."""
        from torch.distributed import checkpoint

        if self._running is not None:
            self._running.result()
        self._running = checkpoint.async_save(state, checkpoint_id=self._folder / str(int(state["step"])))


def main(folder: Path, kind: str, fault_seconds: float) -> None:
    """Train until the process is killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = corpus_bytes()
    model = plain_model(VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    state: dict[str, Any] = {"model": model.state_dict(), "step": torch.zeros(())}
    if kind == "dcp":
        # DCP fills tensors that exist, so the moments are made before the first step.
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 3e-4
    saver = ByDcp(folder, {**state, "optimizer": optimizer.state_dict()}) if kind == "dcp" else ByTorchSave(folder)
    begin = 0
    if (saved := saver.newest()) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = int(saved["step"])
    with (folder / "steps").open("a") as log:
        step, every, due, began = begin, FIRST_SAVE, begin + FIRST_SAVE, time.perf_counter()
        while True:
            hidden: Any = model
            batch = rows(text, step)
            labels = batch[:, 1:].contiguous()
            total, count, _ = hidden.head(hidden(batch[:, :-1].contiguous()), labels=labels)
            (total / count).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            log.write(json.dumps({"step": step, "time": time.time()}) + "\n")
            log.flush()
            if step == due:
                before = time.perf_counter()
                saver.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": torch.tensor(float(step)),
                    }
                )
                blocked, each = time.perf_counter() - before, (before - began) / every
                every = max(1, round((2 * blocked * fault_seconds) ** 0.5 / each))
                due, began = step + every, time.perf_counter()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
