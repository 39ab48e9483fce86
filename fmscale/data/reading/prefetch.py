"""Prefetch of blocks: a thread makes them while the consumer computes; a consumer without a ready block makes its own.

Two threads that need the interpreter slow each other down: a consumer that only takes batches got 540 million tokens/s
from blocks of the thread, and 650 million from its own blocks (2 cores, page cache). So the thread works only while the
consumer is away in its training step. If reads mostly wait for a remote store or a disk, the thread works all the time,
and the consumer waits.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from fmscale.data.reading.planner import HORIZON_STEPS, MAX_STEPS

MOST_BLOCKS = HORIZON_STEPS // MAX_STEPS - 1
"""Most ready blocks: with the block in use they stay within the horizon."""
AWAY_SECONDS = 0.001
"""Absence after which a consumer counts as computing: 30 times the time of fetching a batch of 8 rows."""
LOOK_SECONDS = 0.005
"""Pause between two checks of the consumer by the thread, while blocks are due."""


class PlannedBlock(Protocol):
    """A block of steps."""

    @property
    def reads(self) -> Sequence[Future[Any]]:
        """Reads that must end before the block is delivered."""
        ...


BlockType = TypeVar("BlockType", bound=PlannedBlock)
Made = TypeVar("Made", bound=PlannedBlock, covariant=True)


class BlockPlanner(Protocol[Made]):
    """Makes blocks, one thread at a time, until closed."""

    @property
    def waits(self) -> bool:
        """True if a block mostly waits for a store or other threads, rather than for a core."""
        ...

    def __iter__(self) -> Iterator[Made]:
        """The blocks in order."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Prefetcher(Generic[BlockType]):
    """Blocks of a planner in order. One thread calls `take`."""

    def __init__(self, planner: BlockPlanner[BlockType], *, prefetch: bool, pool: ThreadPoolExecutor | None) -> None:
        """`pool` is the planner's pool. Without `prefetch` each block is made on request."""
        self.away_since = math.inf
        """Time (time.perf_counter) at which the consumer left with a batch; inf while it takes a block."""
        self._planner = planner
        self._pool = pool
        self._ready: deque[BlockType] = deque()
        self._changed = threading.Condition()
        self._making = False
        """True while either thread makes a block."""
        self._error: BaseException | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None
        if prefetch:
            self._thread = threading.Thread(target=self._run, name="fmscale-plan", daemon=True)
            self._thread.start()

    def take(self) -> BlockType:
        """The next block, whose rows are in the arena. Raises the errors of planning and reading."""
        self.away_since = math.inf
        with self._changed:
            here = not (self._ready or self._making or self._error) and (
                self._thread is None or not self._planner.waits
            )
            if here:
                self._making = True
            else:
                # Never for the end of the thread's work: it may wait for memory that the ready blocks hold.
                self._changed.notify()
                self._changed.wait_for(lambda: self._ready or self._error)
        if here:
            self._make()
        with self._changed:
            if not self._ready:
                assert self._error is not None
                raise self._error
            block = self._ready.popleft()
            self._changed.notify()
        for read in block.reads:
            read.result()
        return block

    def close(self) -> None:
        """End the threads. Waits for pending reads, because they write into the arena."""
        self._planner.close()
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        while self._due():
            self._make()
            with self._changed:
                self._changed.notify()

    def _make(self) -> None:
        """Make a block, or record the error. `_making` is True already. Wakes nobody: a consumer that makes its blocks
        would wake the thread for each, which costs 3 % of its time.
        """
        block, error = None, None
        try:
            block = next(iter(self._planner), None)
        except BaseException as caught:
            error = caught
        with self._changed:
            self._making = False
            if block is not None:
                self._ready.append(block)
            else:
                self._error, self._stopped = error, True

    def _due(self) -> bool:
        """Wait until the thread is to make another block, and begin it; False once closed."""
        with self._changed:
            while not self._stopped:
                if len(self._ready) >= MOST_BLOCKS:
                    self._changed.wait()
                elif not self._making and self._alone():
                    self._making = True
                    return True
                else:
                    self._changed.wait(LOOK_SECONDS)
        return False

    def _alone(self) -> bool:
        """True if work of the thread does not slow the consumer down."""
        return self._planner.waits or time.perf_counter() - self.away_since > AWAY_SECONDS
