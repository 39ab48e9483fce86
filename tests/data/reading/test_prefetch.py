"""The thread makes blocks while the consumer computes; a consumer that only takes blocks makes them itself."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from fmscale.data.reading import prefetch
from fmscale.data.reading.planner import Planner, UnitBlock
from fmscale.data.reading.prefetch import MOST_BLOCKS, Prefetcher

PATIENCE = 20.0


class Blocks:
    """A planner that records the thread of each request, and fails at the block `fails_at`."""

    def __init__(self, *, slow: bool = False, fails_at: int = -1) -> None:
        self.waits = slow
        self.fails_at = fails_at
        self.makers: list[str] = []
        self.closed = False
        self._blocks = self._make()

    def __iter__(self) -> Iterator[UnitBlock]:
        return self._blocks

    def close(self) -> None:
        self.closed = True

    def _make(self) -> Iterator[UnitBlock]:
        while not self.closed:
            if len(self.makers) == self.fails_at:
                raise ValueError("no block")
            self.makers.append(threading.current_thread().name)
            yield _block(len(self.makers) - 1)


def _block(number: int) -> UnitBlock:
    block = object.__new__(UnitBlock)
    block.number, block.reads, block.slots = number, [], []
    return block


def begin(blocks: Blocks, *, prefetch: bool = True) -> Prefetcher[UnitBlock]:
    return Prefetcher(cast(Planner, blocks), prefetch=prefetch, pool=None)


def wait_until_ready(made: Prefetcher[UnitBlock], count: int) -> None:
    with made._changed:
        assert made._changed.wait_for(lambda: len(made._ready) >= count, PATIENCE)


def test_a_consumer_that_is_never_away_makes_its_blocks_itself() -> None:
    blocks = Blocks()
    made = begin(blocks)
    assert [made.take().number for _ in range(200)] == list(range(200))
    made.close()
    assert set(blocks.makers) == {"MainThread"}


def test_the_thread_fills_up_while_the_consumer_is_away() -> None:
    blocks = Blocks()
    made = begin(blocks)
    assert made.take().number == 0
    made.away_since = time.perf_counter()
    wait_until_ready(made, MOST_BLOCKS)
    assert blocks.makers == ["MainThread"] + ["fmscale-plan"] * MOST_BLOCKS
    assert [made.take().number for _ in range(MOST_BLOCKS)] == list(range(1, MOST_BLOCKS + 1))
    made.close()


def test_where_reading_waits_the_thread_makes_the_blocks_and_the_consumer_waits() -> None:
    blocks = Blocks(slow=True)
    made = begin(blocks)
    assert [made.take().number for _ in range(50)] == list(range(50))
    made.close()
    assert set(blocks.makers) == {"fmscale-plan"}


def test_without_prefetch_there_is_no_thread() -> None:
    blocks = Blocks(slow=True)
    before = threading.active_count()
    made = begin(blocks, prefetch=False)
    assert threading.active_count() == before
    assert [made.take().number for _ in range(5)] == list(range(5))
    assert len(blocks.makers) == 5
    made.close()


class ShortMemory(Blocks):
    """A planner whose disk turns slow, and whose memory holds two blocks until the consumer has taken a block."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.asleep, self.taken = threading.Event(), threading.Event(), threading.Event()

    @property
    def waits(self) -> bool:
        return threading.current_thread().name == "fmscale-plan"

    @waits.setter
    def waits(self, value: bool) -> None: ...

    def _make(self) -> Iterator[UnitBlock]:
        for number, block in enumerate(super()._make()):
            self.begun.set()
            (self.asleep if number == 0 else self.taken).wait(PATIENCE)
            yield block


def test_a_consumer_gets_the_ready_block_while_the_thread_waits_for_memory() -> None:
    blocks = ShortMemory()
    made = begin(blocks)
    assert blocks.begun.wait(PATIENCE)

    def consume() -> None:
        made.take()
        blocks.taken.set()

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    wait_until_asleep(consumer)
    blocks.asleep.set()
    consumer.join(PATIENCE / 2)
    assert blocks.taken.is_set()
    made.close()


def wait_until_asleep(thread: threading.Thread) -> None:
    """Wait until the kernel says that a thread sleeps, which it does for a lock."""
    state = Path(f"/proc/self/task/{thread.native_id}/stat")
    end = time.monotonic() + PATIENCE
    while state.read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("slow", [False, True])
def test_an_error_comes_behind_the_blocks_before_it(slow: bool) -> None:
    made = begin(Blocks(slow=slow, fails_at=2))
    assert [made.take().number, made.take().number] == [0, 1]
    with pytest.raises(ValueError, match="no block"):
        made.take()
    made.close()


def test_an_error_of_the_thread_outlives_the_blocks_before_it() -> None:
    """The consumer that finds no block must not ask the planner again: an ended planner has no error to tell."""
    made = begin(Blocks(fails_at=2))
    made.take()
    made.away_since = time.perf_counter()
    with made._changed:
        assert made._changed.wait_for(lambda: made._error is not None, PATIENCE)
    made.take()
    for _ in range(2):
        with pytest.raises(ValueError, match="no block"):
            made.take()
    made.close()


@pytest.mark.parametrize("slow", [False, True])
def test_closing_ends_the_thread_whatever_it_waits_for(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "LOOK_SECONDS", 3600.0)
    made = begin(Blocks(slow=slow))
    if slow:
        wait_until_ready(made, MOST_BLOCKS)
    made.close()
    assert made._thread is not None
    assert not made._thread.is_alive()
