"""Host memory for units. Rows of a window are drawn at random, so its units stay in memory until all rows are used.

A slot holds a unit, and may be freed when every block that uses it was consumed: first slots whose rows are all used,
then the least recently planned slots. Rows of tokens lie in one array of equal slots; records have memory of their own.
"""

import mmap
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition
from typing import Any

import numpy as np

from fmscale.errors import ConfigError

UnitKey = tuple[int, int]
"""(source, unit number)."""

_UNREFERENCED = 2
"""sys.getrefcount of an array that only the pool's list and the call itself refer to."""


class LittleMemory(ConfigError):
    """The host memory of a loader holds too few units."""


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """Memory of a unit, and its remaining uses."""

    key: UnitKey
    bytes: int
    """Bytes that count against the arena."""
    last_block: int
    """Last planned block that uses the slot."""
    rows_left: int
    """Rows of the unit that no planned block uses."""
    number: int = 0
    """Index of the slot in a `RowArena`, whose rows begin at number * rows_per_slot."""
    content: Any = None
    """Result of the read: documents of the unit, or its records."""
    read: Future[None] | None = None
    """Pending read in another thread."""
    reserve: int = 0
    """Bytes that are kept free until the read ends, as the unit may be larger than `bytes`."""


class Arena:
    """A number of bytes that units share. The planner takes slots; the consumer releases blocks."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._changed = Condition()
        self.reset()

    def release(self, block: int) -> None:
        """Mark all batches up to and including `block` as delivered."""
        with self._changed:
            self.consumed = block
            self._changed.notify_all()

    def take(
        self,
        key: UnitKey,
        *,
        bytes: int,
        block: int,
        rows_left: int,
        stopped: Callable[[], bool],
        reserve: int = 0,
    ) -> Slot | None:
        """A slot for a unit outside the arena. Waits until there is room; None once `stopped()` is true.

        With `reserve`, whose slots are given to `resize` when their reads end, also waits for pending reads until their
        reserves have room beside it.
        """
        with self._changed:
            while self.used and self.used + bytes + (self.reserved and self.reserved + reserve) > self.memory_bytes:
                if stopped():
                    return None
                full = self.used + bytes > self.memory_bytes
                if self._evict(unfinished=full):
                    continue
                # Units are larger than expected: this block cannot wait for any.
                if full and self.consumed >= block - 1:
                    break
                self._changed.wait(0.5)
            slot = Slot(key=key, bytes=bytes, last_block=block, rows_left=rows_left, reserve=reserve)
            self.slots[key] = slot
            self.used += bytes
            self.reserved += reserve
        return slot

    def resize(self, slot: Slot, bytes: int) -> None:
        """Correct the bytes of a slot whose read has ended. The arena may exceed its memory until units leave."""
        with self._changed:
            self.used += bytes - slot.bytes
            self.reserved -= slot.reserve
            slot.bytes, slot.reserve = bytes, 0
            self._changed.notify_all()

    def reset(self) -> None:
        """Forget all units."""
        self.slots: dict[UnitKey, Slot] = {}
        self.used = 0
        """Bytes of all slots."""
        self.reserved = 0
        """Bytes of all reserves."""
        self.consumed = -1
        """Last block whose batches are all delivered."""

    def forget(self, key: UnitKey) -> Slot:
        """Give back the slot of a unit."""
        slot = self.slots.pop(key)
        self.used -= slot.bytes
        return slot

    def _evict(self, *, unfinished: bool) -> bool:
        """Free all slots without rows left; if there are none, the oldest eighth of the `unfinished` slots that no
        pending block needs. A search through all slots for each unit would cost more than a second read of a unit.
        """
        free = [slot for slot in self.slots.values() if slot.last_block <= self.consumed]
        victims = [slot for slot in free if slot.rows_left <= 0]
        if not victims and unfinished:
            free.sort(key=lambda slot: slot.last_block)
            victims = free[: max(1, len(free) // 8)]
        for slot in victims:
            self.forget(slot.key)
        return bool(victims)


class RowArena(Arena):
    """Slots of equal size in one array of rows, so that a gather takes a batch's rows out of it at once."""

    def __init__(
        self, *, memory_bytes: int, rows_per_slot: int, row_tokens: int, dtype: np.dtype, huge_pages: bool = True
    ) -> None:
        """`huge_pages`: see `_memory`."""
        row_bytes = row_tokens * dtype.itemsize
        self.slot_bytes = rows_per_slot * row_bytes
        self.capacity = memory_bytes // self.slot_bytes
        if self.capacity < 1:
            raise LittleMemory(
                f"memory_bytes holds no unit of {rows_per_slot} rows of {row_bytes} bytes",
                found=memory_bytes,
                remedy=f"Give memory_bytes {4 * rows_per_slot * row_bytes} or more.",
            )
        self.rows_per_slot = rows_per_slot
        memory = _memory(self.capacity * self.slot_bytes, huge_pages)
        self.rows = memory.view(dtype).reshape(self.capacity * rows_per_slot, row_tokens)
        super().__init__(self.capacity * self.slot_bytes)

    def tokens(self, slot: Slot) -> np.ndarray:
        """The slot's memory as one run of tokens."""
        first = slot.number * self.rows_per_slot
        return self.rows[first : first + self.rows_per_slot].reshape(-1)

    def take(
        self,
        key: UnitKey,
        *,
        bytes: int = 0,
        block: int,
        rows_left: int,
        stopped: Callable[[], bool],
        reserve: int = 0,
    ) -> Slot | None:
        """A slot for a unit, always of `slot_bytes`, without a reserve."""
        while not self._unused:  # no lock where slots are free: every unit of the feed passes here
            with self._changed:
                if stopped():
                    return None
                if self._evict(unfinished=True):
                    break
                self._changed.wait(0.5)
        slot = Slot(key=key, bytes=self.slot_bytes, last_block=block, rows_left=rows_left, number=self._unused.pop())
        self.slots[key] = slot
        self.used += self.slot_bytes
        return slot

    def reset(self) -> None:
        """Forget all units, keep the memory."""
        super().reset()
        self._unused = list(range(self.capacity - 1, -1, -1))

    def forget(self, key: UnitKey) -> Slot:
        """Give back the slot of a unit."""
        slot = super().forget(key)
        self._unused.append(slot.number)
        return slot


def _memory(length: int, huge_pages: bool) -> np.ndarray:
    """Bytes of reserved addresses, uint8 [length]: a small dataset touches few of their pages.

    Huge pages make a gather from memory a fifth faster. The first touch of a huge page is dear where a virtual machine
    gives free memory back to its host: 2.2 CPU seconds a GB against 0.5 of small pages, which come from memory that the
    machine still has. From a store across a network, whose reads cost 3 CPU seconds a GB, small pages are cheaper.
    """
    if huge_pages:
        return np.empty(length, dtype=np.uint8)  # numpy asks the kernel for huge pages
    pages = mmap.mmap(-1, max(length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype=np.uint8, count=length)


class BufferPool:
    """Reusable int64 buffers for microbatches: new pages cost more than their filling (3.4 GB/s against 12 GB/s).

    A buffer is reused only when no tensor on it, and no view of such a tensor, is alive: the storage of a tensor from
    torch.from_numpy holds a reference to the array, and the pool counts the references.
    """

    def __init__(self, dtype: np.dtype, row_tokens: int) -> None:
        self._dtype = dtype
        self._row_tokens = row_tokens
        self._wide: list[np.ndarray] = []
        self._narrow: np.ndarray | None = None

    def take(self, rows: int) -> np.ndarray:
        """Buffer int64 [rows, T] that no tensor refers to; its content is arbitrary."""
        for i in range(len(self._wide)):
            if sys.getrefcount(self._wide[i]) == _UNREFERENCED and len(self._wide[i]) == rows:
                return self._wide[i]
        buffer = np.empty((rows, self._row_tokens), dtype=np.int64)
        self._wide = [b for b in self._wide if len(b) == rows]
        self._wide.append(buffer)
        return buffer

    def narrow(self, rows: int) -> np.ndarray:
        """Buffer [rows, T] in the stored width, for the gather; equal `rows` get the same memory."""
        if self._narrow is None or len(self._narrow) != rows:
            self._narrow = np.empty((rows, self._row_tokens), dtype=self._dtype)
        return self._narrow
