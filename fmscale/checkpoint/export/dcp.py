"""A checkpoint in the format of torch.distributed.checkpoint (DCP).

The plan has tensors without memory (meta device); each tensor is read from the checkpoint when DCP writes it.
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
    """Save plan that reads each tensor when DCP writes it."""

    def __init__(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], progress: Callable[[int], None]) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._tensors = tensors
        self._progress = progress

    def resolve_data(self, write_item: WriteItem) -> Any:
        tensor = self._tensors[write_item.index.fqn]
        self._progress(tensor.nbytes)
        return self._checkpoint.tensor(tensor.name, tensor.state)


def export_dcp(checkpoint: Checkpoint, folder: Path, progress: Callable[[int], None]) -> list[Path]:
    """Write weights as model.NAME and all other states as optim.state.NAME.STATE; return the files."""
    tensors = {_key(tensor): tensor for tensor in checkpoint.manifest.tensors}
    empty = {
        key: torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta") for key, info in tensors.items()
    }
    save(
        empty,
        storage_writer=FileSystemWriter(folder, single_file_per_rank=True),
        planner=_Streaming(checkpoint, tensors, progress),
        no_dist=True,
    )
    return sorted(path for path in folder.iterdir() if path.is_file())


def _key(tensor: Tensor) -> str:
    return f"model.{tensor.name}" if tensor.state == "weight" else f"optim.state.{tensor.name}.{tensor.state}"
