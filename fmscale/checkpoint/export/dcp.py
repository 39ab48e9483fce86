"""A checkpoint as torch.distributed.checkpoint has it, for those who go on with DCP.

The plan is made of tensors without memory (meta device); each is read from the checkpoint when DCP writes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.format.layout import Tensor


class _Streaming(DefaultSavePlanner):
    """Reads a tensor when it is its turn."""

    def __init__(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], progress: Callable[[int], None]) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._tensors = tensors
        self._progress = progress

    def resolve_data(self, write_item: WriteItem) -> Any:
        one = self._tensors[write_item.index.fqn]
        self._progress(one.nbytes)
        return self._checkpoint.tensor(one.name, one.state)


def export_dcp(checkpoint: Checkpoint, folder: Path, progress: Callable[[int], None]) -> list[Path]:
    """Write model.NAME for weights and optim.state.NAME.STATE for the rest; the files written."""
    tensors = {_key(one): one for one in checkpoint.manifest.tensors}
    empty = {
        key: torch.empty(one.shape, dtype=getattr(torch, one.dtype), device="meta") for key, one in tensors.items()
    }
    save(
        empty,
        storage_writer=FileSystemWriter(folder, single_file_per_rank=True),
        planner=_Streaming(checkpoint, tensors, progress),
        no_dist=True,
    )
    return sorted(path for path in folder.iterdir() if path.is_file())


def _key(one: Tensor) -> str:
    return f"model.{one.name}" if one.state == "weight" else f"optim.state.{one.name}.{one.state}"
