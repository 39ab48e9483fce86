"""Host memory for units: units of pending batches stay, finished units go first, no thread waits in vain."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.reading.arena import RowArena, Slot
from fmscale.errors import ConfigError

ROWS, TOKENS = 3, 4
JOIN = 20.0


def make_arena(capacity: int) -> RowArena:
    return RowArena(
        memory_bytes=capacity * ROWS * TOKENS * 2, rows_per_slot=ROWS, row_tokens=TOKENS, dtype=np.dtype("uint16")
    )


def take(
    arena: RowArena, unit: int, *, block: int, rows_left: int = 1, stopped: Callable[[], bool] = lambda: False
) -> Slot | None:
    return arena.take((0, unit), block=block, rows_left=rows_left, stopped=stopped)


def units(arena: RowArena) -> set[int]:
    return {unit for _, unit in arena.slots}


class Waiter(threading.Thread):
    """A thread that takes a slot; `waiting` is set when it begins to wait, `woken` has the cause of its end.

    It waits five seconds, and not the arena's half second between polls: only a wake-up ends it in time.
    """

    def __init__(self, arena: RowArena, unit: int, block: int) -> None:
        super().__init__(daemon=True)
        self.arena, self.unit, self.block = arena, unit, block
        self.waiting = threading.Event()
        self.stop = False
        self.woken: list[bool] = []
        self.slot: Slot | None = None
        wait = arena._changed.wait

        def watched(timeout: float | None = None) -> bool:
            self.waiting.set()
            self.woken.append(wait(5.0))
            return self.woken[-1]

        arena._changed.wait = watched  # type: ignore[method-assign]

    def run(self) -> None:
        self.slot = take(self.arena, self.unit, block=self.block, stopped=lambda: self.stop)

    def begin(self) -> "Waiter":
        self.start()
        assert self.waiting.wait(JOIN)
        return self

    def end(self) -> Slot | None:
        self.join(JOIN)
        assert not self.is_alive()
        return self.slot


def test_slots_are_separate_memory() -> None:
    arena = make_arena(4)
    assert arena.capacity == 4
    slots = [take(arena, unit, block=0) for unit in range(4)]
    for unit, slot in enumerate(slots):
        assert slot is not None
        arena.tokens(slot)[:] = unit
    for unit, slot in enumerate(slots):
        assert slot is not None
        assert arena.tokens(slot).shape == (ROWS * TOKENS,)
        assert (arena.tokens(slot) == unit).all()
        first = slot.number * arena.rows_per_slot
        assert (arena.rows[first : first + ROWS] == unit).all()


def test_what_a_pending_block_needs_is_waited_for_and_release_wakes() -> None:
    arena = make_arena(2)
    first, second = take(arena, 0, block=0, rows_left=0), take(arena, 1, block=1, rows_left=0)
    assert first is not None
    waiter = Waiter(arena, 2, 2).begin()
    assert units(arena) == {0, 1}
    arena.release(0)
    slot = waiter.end()
    assert waiter.woken == [True]
    assert slot is not None
    assert slot.number == first.number
    assert arena.slots[0, 1] is second
    assert units(arena) == {1, 2}


def test_a_unit_used_again_by_a_later_block_stays() -> None:
    arena = make_arena(2)
    first = take(arena, 0, block=0, rows_left=0)
    take(arena, 1, block=0, rows_left=0)
    assert first is not None
    first.last_block = 3
    arena.release(2)
    take(arena, 2, block=4)
    assert units(arena) == {0, 2}
    waiter = Waiter(arena, 3, 5).begin()
    assert units(arena) == {0, 2}
    arena.release(3)
    assert waiter.end() is not None
    assert units(arena) == {2, 3}


def test_used_up_units_go_first_and_all_at_once() -> None:
    arena = make_arena(6)
    for unit, left in enumerate([5, 0, 5, -1, 5, 0]):
        take(arena, unit, block=unit, rows_left=left)
    arena.release(4)
    take(arena, 6, block=6)
    assert units(arena) == {0, 2, 4, 5, 6}, "5 is used up, but block 5 is pending"
    take(arena, 7, block=7)
    assert units(arena) == {0, 2, 4, 5, 6, 7}, "the place of the other used-up unit was free"


def test_failing_that_an_eighth_the_oldest_first() -> None:
    arena = make_arena(16)
    for unit in range(16):
        take(arena, unit, block=15 - unit, rows_left=9)
    arena.release(15)
    take(arena, 16, block=16)
    assert units(arena) == {*range(14), 16}


def test_stopped_gives_none_also_to_one_who_waits() -> None:
    arena = make_arena(1)
    take(arena, 0, block=0)
    assert take(arena, 1, block=1, stopped=lambda: True) is None
    waiter = Waiter(arena, 1, 1).begin()
    waiter.stop = True
    arena.release(-1)
    assert waiter.end() is None
    assert units(arena) == {0}


def test_forget_and_reset_give_slots_back() -> None:
    arena = make_arena(2)
    take(arena, 0, block=0)
    second = take(arena, 1, block=0)
    assert second is not None
    arena.forget((0, 1))
    again = take(arena, 2, block=0)
    assert again is not None
    assert again.number == second.number
    arena.release(3)
    arena.reset()
    assert arena.slots == {}
    assert {slot.number for unit in (5, 6) if (slot := take(arena, unit, block=0))} == {0, 1}
    assert take(arena, 7, block=0, stopped=lambda: True) is None, "reset forgets what was consumed"


def test_a_budget_below_one_unit_is_refused() -> None:
    assert make_arena(1).capacity == 1
    with pytest.raises(ConfigError, match="memory_bytes") as caught:
        RowArena(memory_bytes=ROWS * TOKENS * 2 - 1, rows_per_slot=ROWS, row_tokens=TOKENS, dtype=np.dtype("uint16"))
    assert str(4 * ROWS * TOKENS * 2) in caught.value.remedy


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.booleans()), max_size=60))
def test_pending_units_keep_their_memory(capacity: int, uses: list[tuple[int, int, bool]]) -> None:
    """Blocks of one unit each, planned as the planner does; some are consumed in between."""
    arena = make_arena(capacity)
    for block, (unit, left, consume) in enumerate(uses):
        slot = arena.slots.get((0, unit))
        if slot is not None:
            slot.last_block = block
        else:
            if all(s.last_block > arena.consumed for s in arena.slots.values()) and len(arena.slots) == capacity:
                arena.release(min(s.last_block for s in arena.slots.values()))
            before = {s.key for s in arena.slots.values() if s.last_block > arena.consumed}
            slot = take(arena, unit, block=block, rows_left=left)
            assert slot is not None
            arena.tokens(slot)[:] = unit
            assert before <= set(arena.slots)
        if consume:
            arena.release(block)
        numbers = [s.number for s in arena.slots.values()]
        assert len(numbers) == len(set(numbers)) <= capacity
        for (_, held), s in arena.slots.items():
            assert (arena.tokens(s) == held).all()
