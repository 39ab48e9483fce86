"""The thread makes blocks while the consumer computes; a consumer that only takes blocks makes them itself."""

import threading
import time
from collections.abc import Iterator
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


def begin(blocks: Blocks, *, prefetch: bool = True) -> Prefetcher:
    return Prefetcher(cast(Planner, blocks), prefetch=prefetch, pool=None)


def wait_until_ready(made: Prefetcher, count: int) -> None:
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


@pytest.mark.parametrize("slow", [False, True])
def test_an_error_comes_behind_the_blocks_before_it(slow: bool) -> None:
    made = begin(Blocks(slow=slow, fails_at=2))
    assert [made.take().number, made.take().number] == [0, 1]
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
