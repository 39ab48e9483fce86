"""Host memory for units: rows of a window are drawn at random, so its units stay here until used up.

One array of rows, cut into slots of one unit each. A slot is given away again when every block of batches
that uses it was consumed: first the units whose rows are all used, then the least recently planned.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition

import numpy as np

from fmscale.data.batch import UnitDocuments
from fmscale.errors import ConfigError

UnitKey = tuple[int, int]
"""(source, unit number)."""


class LittleMemory(ConfigError):
    """The host memory of a loader holds too few units."""


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """Where one unit lies, and how long it is needed."""

    number: int
    """Index of the slot; its rows begin at number * rows_per_slot."""
    key: UnitKey
    """The unit in it."""
    last_block: int
    """The last planned block of batches that uses it."""
    rows_left: int
    """Rows of the unit that no planned block has used yet."""
    documents: UnitDocuments | None = field(default=None)
    """Set once the unit has been read."""
    read: Future[None] | None = field(default=None)
    """The read under way, where another thread does it."""


class Arena:
    """Slots for units. One planner thread takes slots; the consumer only tells which blocks are done."""

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
        self.slots: dict[UnitKey, Slot] = {}
        self.consumed = -1
        """The last block whose batches have all been delivered."""
        self._unused = list(range(self.capacity - 1, -1, -1))
        self._changed = Condition()

    def tokens(self, slot: Slot) -> np.ndarray:
        """The slot's memory as one run of tokens."""
        first = slot.number * self.rows_per_slot
        return self.rows[first : first + self.rows_per_slot].reshape(-1)

    def release(self, block: int) -> None:
        """All batches up to and including `block` were delivered."""
        with self._changed:
            self.consumed = block
            self._changed.notify_all()

    def take(self, key: UnitKey, *, block: int, rows_left: int, stopped: Callable[[], bool]) -> Slot | None:
        """A slot for a unit that is not here yet. Waits until one can be given away; None once `stopped`."""
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
        self.slots.clear()
        self.consumed = -1
        self._unused = list(range(self.capacity - 1, -1, -1))

    def forget(self, key: UnitKey) -> None:
        """Give back the slot of a unit that could not be read."""
        self._unused.append(self.slots.pop(key).number)

    def _evict(self) -> bool:
        """Give away every used-up unit; failing that, an eighth of those that no pending block needs, oldest
        first: looking through all slots for a single one would cost more than reading a unit again.
        """
        free = [slot for slot in self.slots.values() if slot.last_block <= self.consumed]
        victims = [slot for slot in free if slot.rows_left <= 0]
        if not victims:
            free.sort(key=lambda slot: slot.last_block)
            victims = free[: max(1, len(free) // 8)]
        for slot in victims:
            self.forget(slot.key)
        return bool(victims)
