"""Snapshot of a save: one copy of this rank's pieces into memory that later saves reuse.

On a CPU a thread copies while the next forward and backward run. On CUDA a side stream copies after the work that the
device already has, and at the `fence` the device's stream waits, not the host. Where CUDA refuses to pin the memory,
the thread copies from that stream, several times slower. Buffers, which forward and backward may change, are copied
before `take` returns.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmscale.checkpoint.format.layout import FileLayout, checked, plan_layout
from fmscale.checkpoint.format.piece import Piece
from fmscale.checkpoint.snapshot.copy_progress import EVERYTHING
from fmscale.checkpoint.snapshot.memory import SharedMemory

logger = logging.getLogger(__name__)

MOVING = frozenset({"buffer"})
"""States that forward and backward may change."""
BLOCK_BYTES = 16 << 20
"""Bytes that are copied at once: the persist process may write a block while later blocks are copied."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A run of bytes that is contiguous both in the model's memory and in the snapshot."""

    source: Tensor
    """uint8, 1-D."""
    offset: int
    """First byte in the snapshot."""
    moving: bool
    """True if forward or backward may change the bytes."""

    @cached_property
    def host(self) -> np.ndarray:
        """The CPU source as a numpy array, kept because making it takes longer than copying a small tensor."""
        return self.source.numpy()


class SnapshotSlot:
    """One snapshot's memory and the plan of its copies; both are kept from save to save."""

    def __init__(self, register: Callable[[Tensor, torch.device], int] | None = None) -> None:
        """`register` pins memory for pieces of a device, and returns CUDA's error or 0; by default CUDA's own does it
        for GPUs."""
        self._register = register
        self.busy = False
        self.memory: SharedMemory | None = None
        self.layout: FileLayout | None = None
        self._key: tuple[Any, ...] | None = None
        self._copies: list[Copy] = []
        self._pieces: Sequence[Piece] = ()
        self._later: list[Copy] = []
        self._copied = Event()
        self._done: list[Any] = []
        self._streams: dict[torch.device, Any] = {}
        self._pinned: bool | None = None

    def prepare(self, pieces: Sequence[Piece]) -> None:
        """Plan the copies of these pieces, or keep the last plan if the pieces are the same; allocate and pin memory.

        Raises ConfigError for a piece that cannot be saved, OSError or MemoryError for a lack of memory.
        """
        key = tuple(
            (piece.name, piece.state, piece.dtype, piece.shape, piece.start, p.data_ptr(), p.numel())
            for piece, p in ((piece, piece.tensor) for piece in pieces)
        )
        self._pieces = pieces  # keeps CUDA memory from being used again while a side stream reads it
        if key != self._key or self.layout is None:
            self.layout = plan_layout([checked(piece) for piece in pieces])
            self._copies = _merged(pieces, self.layout)
            self._key = key
        if self.memory is None or self.memory.size < self.layout.memory_bytes:
            self.release()
            self.memory = SharedMemory(self.layout.memory_bytes)
        device = next((copy.source.device for copy in self._copies if copy.source.is_cuda or self._register), None)
        if self._pinned is None and device is not None:
            self._pinned = pin(self._target, device, self._register or _register)

    @property
    def _target(self) -> Tensor:
        assert self.memory is not None
        return torch.frombuffer(self.memory.view, dtype=torch.uint8)

    def take(self, *, overlap: bool) -> None:
        """Begin the copy. Without `overlap` copy all pieces; with it copy the pieces that forward may change, and queue
        the copies of GPU tensors. `finish` completes the copy.
        """
        target = self._target
        self._copied.clear()
        later = [copy for copy in self._copies if overlap and not copy.moving]
        for copy in self._copies:
            if copy.moving or not overlap:
                copy_block(target, copy)
        self._streams = _side_streams(later)
        queued = [copy for copy in later if copy.source.is_cuda and self._pinned]
        self._done = _queue(queued, target, self._streams)
        self._later = [copy for copy in later if not (copy.source.is_cuda and self._pinned)]
        if not self._later:
            self._copied.set()

    def finish(self, copied: Callable[[int], None] = lambda _: None) -> None:
        """Copy the rest and return when the snapshot is complete; a thread beside training calls this. `copied`
        receives the byte up to which the memory is final, several times during the copy.
        """
        target = self._target
        try:
            final = 0
            for copy in self._later:
                if copy.offset - final >= BLOCK_BYTES and not self._done:
                    final = copy.offset
                    copied(final)
                with _on(self._streams.get(copy.source.device)):
                    copy_block(target, copy)
        finally:
            self._copied.set()
        for event in self._done:
            event.synchronize()
        copied(EVERYTHING)

    def abandon(self) -> None:
        """Give up the rest of the last copy; a wait at the fence ends."""
        self._copied.set()

    def fence(self) -> None:
        """Return when the optimizer may write: host copies are complete, and this device's stream will wait
        for the GPU copies.
        """
        self._copied.wait()
        for event in self._done:
            torch.cuda.current_stream(event.device).wait_event(event)

    def release(self) -> None:
        """Free the memory."""
        if self.memory is not None:
            if self._pinned and not self._register:
                torch.cuda.cudart().cudaHostUnregister(self._target.data_ptr())
            self._pinned = None
            self.memory.close()
            self.memory = None


def copy_block(target: Tensor, copy: Copy) -> None:
    """Copy one run of bytes into the snapshot. On a CPU numpy makes 12 GB/s and lets other threads run;
    torch's copy_ with one thread makes 6 to 11 GB/s.
    """
    end = copy.offset + copy.source.numel()
    if copy.source.is_cuda:
        target[copy.offset : end].copy_(copy.source)
        return
    np.copyto(target.numpy()[copy.offset : end], copy.host)


def _merged(pieces: Sequence[Piece], layout: FileLayout) -> list[Copy]:
    """Copies in file order; a piece that continues the copy before it in both memories joins that copy."""
    copies: list[Copy] = []
    for place, number in enumerate(layout.order):
        piece = pieces[number]
        if not piece.count:
            continue
        source = piece.tensor.detach().view(torch.uint8)
        offset, moving = layout.offsets[place], piece.state in MOVING
        last = copies[-1] if copies else None
        if last is not None and last.moving == moving and last.offset + last.source.numel() == offset:
            both = _one_view(last.source, source)
            if both is not None:
                copies[-1] = replace(last, source=both)
                continue
        copies.append(Copy(source=source, offset=offset, moving=moving))
    return [block for copy in copies for block in _blocks(copy)]


def _blocks(copy: Copy) -> Iterator[Copy]:
    """Cut a CPU copy into blocks; a GPU copy stays whole, as all GPU copies are queued at once."""
    step = copy.source.numel() if copy.source.is_cuda else BLOCK_BYTES
    for start in range(0, copy.source.numel(), step):
        yield replace(copy, source=copy.source[start : start + step], offset=copy.offset + start)


def _one_view(first: Tensor, second: Tensor) -> Tensor | None:
    """A view over both tensors if the second follows the first in one storage, else None."""
    storage = first.untyped_storage()
    if storage.data_ptr() != second.untyped_storage().data_ptr():
        return None
    if first.storage_offset() + first.numel() != second.storage_offset():
        return None
    return torch.empty(0, dtype=torch.uint8, device=first.device).set_(
        storage, first.storage_offset(), (first.numel() + second.numel(),), (1,)
    )


def pin(target: Tensor, device: torch.device, register: Callable[[Tensor, torch.device], int]) -> bool:
    """Pin the snapshot's pages, so that copies from the device run beside kernels. False if CUDA refuses."""
    error = register(target, device)
    if error:
        _warn(error)
        # The error stays in CUDA's runtime, and the check behind the next kernel, which clears it, would raise it.
        with suppress(RuntimeError):
            torch.zeros(1, device=device)
    return not error


@cache
def _warn(error: int) -> None:
    """Say once in a process what a refusal costs."""
    logger.warning(
        "CUDA does not pin the memory of snapshots (cudaHostRegister: error %d), as in some sandboxes and on virtual "
        "GPUs: saves copy the state several times slower, beside training",
        error,
    )


def _register(target: Tensor, device: torch.device) -> int:
    with torch.cuda.device(device):  # the helper thread's own would be GPU 0
        return int(torch.cuda.cudart().cudaHostRegister(target.data_ptr(), target.numel(), 0))


def _side_streams(copies: Iterable[Copy]) -> dict[torch.device, Any]:
    """A stream for each GPU of the copies, behind the work that the GPU already has."""
    streams = {}
    for device in {copy.source.device for copy in copies if copy.source.is_cuda}:
        streams[device] = torch.cuda.Stream(device)
        streams[device].wait_stream(torch.cuda.current_stream(device))
    return streams


def _on(stream: Any) -> Any:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _queue(copies: Sequence[Copy], target: Tensor, streams: dict[torch.device, Any]) -> list[Any]:
    """Queue the copies on their devices' streams; return an event a device, behind its copies."""
    for copy in copies:
        with _on(streams[copy.source.device]):
            size = copy.source.numel()
            target[copy.offset : copy.offset + size].copy_(copy.source, non_blocking=True)
    return [streams[device].record_event() for device in sorted({copy.source.device for copy in copies}, key=str)]
