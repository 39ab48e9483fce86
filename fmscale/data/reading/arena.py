"""Host memory for units. Rows of a window are drawn at random, so its units stay in memory until all rows are used.

An array of rows is divided into slots of one unit each. A slot may be freed when every block that uses it was consumed:
first slots whose rows are all used, then the least recently planned slots.
"""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition

import numpy as np

from fmscale.data.batch import UnitDocuments
from fmscale.errors import ConfigError

UnitKey = tuple[int, int]
"""(source, unit number)."""

_UNREFERENCED = 2
"""sys.getrefcount of an array that only the pool's list and the call itself refer to."""


class LittleMemory(ConfigError):
    """The host memory of a loader holds too few units."""


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """Place of a unit in memory, and its remaining uses."""

    number: int
    """Index of the slot, whose rows begin at number * rows_per_slot."""
    key: UnitKey
    """Unit in the slot."""
    last_block: int
    """Last planned block that uses the slot."""
    rows_left: int
    """Rows of the unit that no planned block uses."""
    documents: UnitDocuments | None = None
    """Documents of the unit, set after its read."""
    read: Future[None] | None = None
    """Pending read in another thread."""


class Arena:
    """Slots for units. The planner takes slots; the consumer releases blocks."""

    def __init__(self, *, memory_bytes: int, rows_per_slot: int, row_tokens: int, dtype: np.dtype) -> None:
        row_bytes = row_tokens * dtype.itemsize
        self.capacity = memory_bytes // (rows_per_slot * row_bytes)
        if self.capacity < 1:
            raise LittleMemory(
                f"memory_bytes holds no unit of {rows_per_slot} rows of {row_bytes} bytes",
                found=memory_bytes,
                remedy=f"give the loader at least {4 * rows_per_slot * row_bytes} bytes",
            )
        self.rows_per_slot = rows_per_slot
        self.slot_bytes = rows_per_slot * row_bytes
        # np.empty reserves address space only: a small dataset touches few of these pages.
        self.rows = np.empty((self.capacity * rows_per_slot, row_tokens), dtype=dtype)
        self._changed = Condition()
        self.reset()

    def tokens(self, slot: Slot) -> np.ndarray:
        """The slot's memory as one run of tokens."""
        first = slot.number * self.rows_per_slot
        return self.rows[first : first + self.rows_per_slot].reshape(-1)

    def release(self, block: int) -> None:
        """Mark all batches up to and including `block` as delivered."""
        with self._changed:
            self.consumed = block
            self._changed.notify_all()

    def take(self, key: UnitKey, *, block: int, rows_left: int, stopped: Callable[[], bool]) -> Slot | None:
        """A slot for a unit outside the arena. Waits until a slot is free; None once `stopped()` is true."""
        while not self._unused:
            with self._changed:
                if stopped():
                    return None
                if self._evict():
                    break
                self._changed.wait(0.5)
        slot = Slot(number=self._unused.pop(), key=key, last_block=block, rows_left=rows_left)
        self.slots[key] = slot
        return slot

    def reset(self) -> None:
        """Forget all units, keep the memory."""
        self.slots: dict[UnitKey, Slot] = {}
        self.consumed = -1
        """Last block whose batches are all delivered."""
        self._unused = list(range(self.capacity - 1, -1, -1))

    def forget(self, key: UnitKey) -> None:
        """Give back the slot of a unit that could not be read."""
        self._unused.append(self.slots.pop(key).number)

    def _evict(self) -> bool:
        """Free all slots without rows left; if there are none, the oldest eighth of the slots that no pending block
        needs. A search through all slots for each unit would cost more than a second read of a unit.
        """
        free = [slot for slot in self.slots.values() if slot.last_block <= self.consumed]
        victims = [slot for slot in free if slot.rows_left <= 0]
        if not victims:
            free.sort(key=lambda slot: slot.last_block)
            victims = free[: max(1, len(free) // 8)]
        for slot in victims:
            self.forget(slot.key)
        return bool(victims)


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
