"""Host to device: the inputs of a step in one copy from pinned memory."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fmscale.objectives.protocol import Inputs

FIELDS, OWN = ("weights", "source", "bounds"), "Inputs."
ALIGNMENT = 64
"""Bytes; every tensor of a step begins at a multiple, as kernels expect of an allocation."""


class Staging:
    """Two buffers of pinned memory in turn: while the device copies from one, the host fills the other. Each tensor by
    itself would be a copy from pageable memory, for which the host waits: 7 a forward of rows.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._copied: list[Any] = [None, None]

    def move(self, host: Sequence[Inputs]) -> list[Inputs]:
        """The inputs of a step's forwards on the device. On a CPU they stay where they are."""
        if self._device == "cpu":
            return [each.to(self._device) for each in host]
        named = [{**each.tensors, **{OWN + name: getattr(each, name) for name in FIELDS}} for each in host]
        every = [tensor for tensors in named for tensor in tensors.values()]
        places = [0, *accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in every)]
        buffer = self._next(places[-1])
        for tensor, place in zip(every, places, strict=False):
            _view(buffer, place, tensor).copy_(tensor)
        flat, at = self.copy(buffer[: places[-1]]), iter(places)
        moved = [{name: _view(flat, next(at), tensor) for name, tensor in tensors.items()} for tensors in named]
        own = [{name: tensors.pop(OWN + name) for name in FIELDS} for tensors in moved]
        return [Inputs(tensors=tensors, **fields) for tensors, fields in zip(moved, own, strict=True)]

    def copy(self, packed: Tensor) -> Tensor:
        """The packed bytes on the device."""
        flat = packed.to(self._device, non_blocking=True)
        if flat.is_cuda:
            self._copied[0] = torch.cuda.current_stream(flat.device).record_event()
        return flat

    def _next(self, size: int) -> Tensor:
        """The buffer that was used before the last, with room for `size` bytes; nothing copies from it any more."""
        self._buffers.reverse()
        self._copied.reverse()
        if self._copied[0] is not None:
            self._copied[0].synchronize()
        if self._buffers[0].numel() < size:
            self._buffers[0] = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.startswith("cuda"))
        return self._buffers[0]


def _view(flat: Tensor, place: int, like: Tensor) -> Tensor:
    """The bytes from `place` on as a tensor of the shape and type of another."""
    return flat[place : place + like.nbytes].view(like.dtype).view(like.shape)
