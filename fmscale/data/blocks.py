"""Planning ahead: a block is a run of steps whose rows are known, whose units are being read.

The planner thread assigns samples to this rank, takes arena slots for the units they need, in order of first
use, and has them read; the consumer waits for a block's reads and gathers rows. Blocks grow from one step, so
that the first batch comes soon, to `MAX_STEPS`, so that planning costs microseconds a step.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from queue import Empty, Full, Queue

import numpy as np

from fmscale.data.arena import Arena, Slot, UnitKey
from fmscale.data.batch import UnitDocuments
from fmscale.data.plan import Plan
from fmscale.data.readers import Readers
from fmscale.data.steps import Batches
from fmscale.errors import ConfigError
from fmscale.store.fetch import CorruptChunk

MAX_STEPS = 64
"""Steps of a full block. At 8 rows a step one vectorised planning of 64 steps costs about 5 us a step."""
ASSIGN_SAMPLES = 4096
"""Samples assigned at once: one call costs 0.5 ms, whether for 64 samples or for 4,096 not twice that."""
ASSIGN_STEPS = 256
"""Steps assigned at once at most, so that looking at the order log every 256 steps is early enough."""
REFRESH_BLOCKS = 4
"""Blocks between two looks at the order log: one request in 256 steps. An entry takes effect more than
HORIZON_STEPS after it was written, so every rank sees it before it plans that far.
"""
HORIZON_STEPS = 512
"""No rank plans further than this many steps beyond what it has delivered."""


class DamagedRows(Exception):
    """Rows of a source that no source of bytes can serve; the loader quarantines them or stops."""

    def __init__(self, source: int, rows: tuple[int, int], error: CorruptChunk) -> None:
        super().__init__(source, rows)
        self.source = source
        self.rows = rows
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of every step falls to this rank, and in what portions."""

    dp_rank: int
    """Place among the data-parallel ranks."""
    dp_size: int
    """Number of data-parallel ranks."""
    micro_batch: int | None
    """Rows of one forward; None: the rank's whole part of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one rank delivers in a run of steps. F forwards, M rows each, fillers zero."""

    step: np.ndarray
    """int64 [F]: step of each forward."""
    real: np.ndarray
    """int64 [F]: real rows; the rest are fillers."""
    last: np.ndarray
    """bool [F]: last forward of its step."""
    k: np.ndarray
    """uint64 [F, M]."""
    source: np.ndarray
    """uint16 [F, M]."""
    row: np.ndarray
    """uint64 [F, M]."""
    after: np.ndarray
    """uint64 [F]: first sample behind each forward's step."""

    def part(self, first: int, stop: int) -> "Assignment":
        """The forwards of steps [first, stop)."""
        cut = slice(*np.searchsorted(self.step, (first, stop)).tolist())
        return Assignment(**{field.name: getattr(self, field.name)[cut] for field in fields(self)})


def assign(plan: Plan, batches: Batches, share: Share, *, k: int, steps: int) -> Assignment:
    """The rows of `steps` steps from sample `k` on that fall to one rank (design §7.7): inside a step sorted
    by (lane, source, k), rank r takes slots [floor(rB/R), floor((r+1)B/R)). Every rank gets the same number
    of forwards.
    """
    first = batches.step_of(k)
    bounds = batches.kappa(np.arange(first, first + steps + 1))
    bounds[0] = k  # after a change of the batch size, the rest of the step that k lies in
    sizes = np.diff(bounds)
    samples = plan.samples(np.arange(bounds[0], bounds[-1], dtype=np.uint64))
    step = np.repeat(np.arange(steps), sizes)
    by_slot = np.lexsort((samples.k, samples.source, samples.lane, step))
    slot = np.arange(len(step)) - np.repeat(bounds[:-1] - bounds[0], sizes)
    low = share.dp_rank * sizes // share.dp_size
    high = (share.dp_rank + 1) * sizes // share.dp_size
    mine = (slot >= low[step]) & (slot < high[step])
    chosen, place, step = by_slot[mine], (slot - low[step])[mine], step[mine]

    largest = -(-sizes // share.dp_size)
    width = share.micro_batch or int(largest.max())
    forwards = -(-largest // width)
    base = np.cumsum(forwards) - forwards
    forward = base[step] + place // width
    total = int(forwards.sum())

    def spread(values: np.ndarray) -> np.ndarray:
        grid = np.zeros((total, width), dtype=values.dtype)
        grid[forward, place % width] = values[chosen]
        return grid

    last = np.zeros(total, dtype=bool)
    last[base + forwards - 1] = True
    return Assignment(
        step=first + np.repeat(np.arange(steps), forwards),
        real=np.bincount(forward, minlength=total),
        last=last,
        k=spread(samples.k),
        source=spread(samples.source),
        row=spread(samples.row),
        after=np.repeat(bounds[1:], forwards),
    )


@dataclass(slots=True, kw_only=True)
class Block:
    """A planned run of steps and the unit reads that it waits for."""

    number: int
    """Counts blocks from 0."""
    plan: Plan
    """The plan that it follows."""
    assignment: Assignment
    """Which rows."""
    gather: np.ndarray
    """int64 [F, M]: arena row of each row; 0 for fillers."""
    slots: list[Slot]
    """Slot of each real row, in order of forwards."""
    offsets: list[int]
    """Token position of each real row in its unit."""
    documents: list[UnitDocuments] = field(default_factory=list)
    """Documents of the unit of each real row; filled by `take`."""
    reads: list["Future[None]"] = field(default_factory=list)
    """Reads that must end before the rows may be gathered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitUses:
    """The units behind an assignment's real rows. U units, R real rows."""

    keys: list[UnitKey]
    """[U] in order of first use."""
    uses: list[int]
    """[U] rows of each."""
    inverse: np.ndarray
    """int64 [R]: unit of each row."""
    offset: np.ndarray
    """int64 [R]: row's place in its unit."""
    real: np.ndarray
    """bool [F, M]: which cells are real rows."""


class Planner:
    """Plans blocks from sample `k` on, in its own thread, until closed. `take` gives them in order.

    With `read_threads` 0 the planner thread reads units itself: for a local store that is fastest, because
    handing work to another thread costs more than the page cache takes to serve it.
    """

    def __init__(
        self,
        plan: Plan,
        batches: Batches,
        share: Share,
        readers: Readers,
        arena: Arena,
        *,
        k: int,
        read_threads: int,
        refresh: Callable[[], Plan] | None = None,
    ) -> None:
        """`refresh` gives the plan with what the order log holds by now."""
        self.plan = plan
        self._refresh = refresh
        self._ahead: Assignment | None = None
        self._batches = batches
        self._share = share
        self._readers = readers
        self._arena = arena
        self._pool = ThreadPoolExecutor(read_threads, "fmscale-read") if read_threads else None
        self._blocks: Queue[Block | BaseException] = Queue(maxsize=HORIZON_STEPS // MAX_STEPS - 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(k,), name="fmscale-plan", daemon=True)
        self._thread.start()

    def take(self) -> Block:
        """The next block, its rows in the arena. Raises what planning or reading raised."""
        block = self._blocks.get()
        if isinstance(block, BaseException):
            raise block
        for read in block.reads:
            read.result()
        block.documents = [slot.documents for slot in block.slots if slot.documents is not None]
        assert len(block.documents) == len(block.slots)
        return block

    def close(self) -> None:
        """End the threads; reads under way are waited for, because they write into the arena."""
        self._stop.set()
        with contextlib.suppress(Empty):
            while True:
                self._blocks.get_nowait()
        self._thread.join()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, k: int) -> None:
        try:
            steps = 1
            for number in itertools.count():
                if self._refresh is not None and number % REFRESH_BLOCKS == 0:
                    plan = self._refresh()
                    if plan.log_head != self.plan.log_head:
                        self.plan, self._ahead = plan, None
                block, steps = self._plan_block(number, k, steps)
                if block is None or not self._put(block):
                    return
                k = int(block.assignment.after[-1])
                steps = min(2 * steps, MAX_STEPS)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Block | BaseException) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(Full):
                self._blocks.put(item, timeout=0.2)
                return True
        return False

    def _plan_block(self, number: int, k: int, steps: int) -> tuple[Block | None, int]:
        """The block of at most `steps` steps from sample k whose units fit into a third of the arena, so that
        the one being consumed, the one waiting and the one being read fit together.
        """
        first = self._batches.step_of(k)
        while True:
            assignment = self._assigned(k, first, steps)
            units = self._units(assignment)
            if len(units.keys) <= max(self._arena.capacity // 3, 1) or steps == 1:
                break
            steps //= 2
        if len(units.keys) > self._arena.capacity:
            raise ConfigError(
                f"one step of this rank needs {len(units.keys)} units in host memory",
                found=f"memory_budget for {self._arena.capacity}",
                remedy=f"Raise memory_budget {len(units.keys) // self._arena.capacity + 1}-fold.",
            )
        missing: list[Slot] = []
        for key, uses in zip(units.keys, units.uses, strict=True):
            if (slot := self._arena.slots.get(key)) is not None:
                slot.last_block = number
                slot.rows_left -= uses
        for key, uses in zip(units.keys, units.uses, strict=True):
            if key in self._arena.slots:
                continue
            taken = self._arena.take(
                key,
                block=number,
                rows_left=self.plan.sources[key[0]].view.rows_per_unit - uses,
                stopped=self._stop.is_set,
            )
            if taken is None:
                return None, steps
            missing.append(taken)
        block = self._gathered(number, assignment, units)
        for slot in missing:
            if self._pool is None:
                self._read(slot)
            else:
                slot.read = self._pool.submit(self._read, slot)
        block.reads = [slot.read for slot in dict.fromkeys(block.slots) if slot.read is not None]
        return block, steps

    def _assigned(self, k: int, first: int, steps: int) -> Assignment:
        """The assignment of `steps` steps from step `first` on, which begins with sample k."""
        ahead = self._ahead
        if ahead is None or not ahead.step[0] <= first <= first + steps - 1 <= ahead.step[-1]:
            batch = self._batches.batch(first)
            ahead_steps = max(steps, min(ASSIGN_STEPS, ASSIGN_SAMPLES // batch)) if steps > 8 else steps
            ahead = assign(self.plan, self._batches, self._share, k=k, steps=ahead_steps)
            self._ahead = ahead
        return ahead.part(first, first + steps)

    def _gathered(self, number: int, assignment: Assignment, units: UnitUses) -> Block:
        """The block with the arena row of every row."""
        slots = [self._arena.slots[key] for key in units.keys]
        bases = np.array([slot.number * self._arena.rows_per_slot for slot in slots], dtype=np.int64)
        gather = np.zeros(assignment.k.shape, dtype=np.int64)
        gather[units.real] = bases[units.inverse] + units.offset
        row_tokens = self._arena.rows.shape[1]
        return Block(
            number=number,
            plan=self.plan,
            assignment=assignment,
            gather=gather,
            slots=[slots[i] for i in units.inverse.tolist()],
            offsets=(units.offset * row_tokens).tolist(),
        )

    def _units(self, assignment: Assignment) -> UnitUses:
        """Units of the rows, in order of first use."""
        real = np.arange(assignment.k.shape[1]) < assignment.real[:, None]
        source, row = assignment.source[real], assignment.row[real]
        unit = np.empty(len(row), dtype=np.int64)
        offset = np.empty(len(row), dtype=np.int64)
        for number in np.flatnonzero(np.bincount(source)).tolist():
            here = source == number
            unit[here], offset[here] = self.plan.sources[number].view.units.unit_of(row[here])
        joined = source.astype(np.int64) << 48 | unit
        _, first, inverse, uses = np.unique(
            joined, return_index=True, return_inverse=True, return_counts=True
        )
        by_use = np.argsort(first)
        place = np.empty_like(by_use)
        place[by_use] = np.arange(len(by_use))
        first = first[by_use]
        return UnitUses(
            keys=list(zip(source[first].tolist(), unit[first].tolist(), strict=True)),
            uses=uses[by_use].tolist(),
            inverse=place[inverse],
            offset=offset,
            real=real,
        )

    def _read(self, slot: Slot) -> None:
        """Read the slot's unit. Raises DamagedRows for rows that the plan may still deliver."""
        source, unit = slot.key
        reader = self._readers.of(self.plan, source)
        documents, damaged = reader.read(unit, self._arena.tokens(slot))
        slot.documents = documents
        for start, stop, error in damaged:
            tokens = self._arena.rows.shape[1]
            first = int(reader.view.units.id(np.array([unit]), np.array([0]))[0])
            rows = (first + start // tokens, first + -(-stop // tokens))
            if not self.plan.quarantined(source, rows):
                raise DamagedRows(source, rows, error)
