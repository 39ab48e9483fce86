"""Planner: blocks of steps with their rows and the reads of their units.

The planner assigns samples to this rank, takes arena slots for their units in order of first use, and starts the reads.
The consumer waits for a block's reads and gathers rows. The first block has one step, so that the first batch comes
soon. Later blocks grow to `MAX_STEPS`, so that planning costs microseconds a step.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fmscale.data.plan.assign import Assignment, Share, assign
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import NEVER, Plan, Ranges
from fmscale.data.reading.arena import LittleMemory, RowArena, Slot, UnitKey
from fmscale.data.reading.readers import Readers
from fmscale.data.views.placement import merged
from fmscale.store.tiers.fetch import CorruptChunk

MAX_STEPS = 64
"""Steps of a full block. At 8 rows a step, planning 64 steps at once costs about 5 us a step."""
ASSIGN_SAMPLES = 4096
"""Samples assigned at once: a call for 64 samples costs 0.5 ms, a call for 4,096 less than twice that."""
ASSIGN_STEPS = 256
"""Most steps assigned at once, so that a look at the order log every 256 steps is early enough."""
REFRESH_BLOCKS = 4
"""Blocks between two looks at the order log: one request in 256 steps. An entry takes effect more than HORIZON_STEPS
steps after its write, so every rank reads the entry before it plans those steps.
"""
CACHED_BYTES_PER_SECOND = 1.2e9
"""Reads below this rate wait for a disk. Units came at 2.9 GB/s from the page cache, at 0.65 GB/s from a disk with one
request at a time, and at 1.3 GB/s from the same disk with reads announced ahead.
"""
JUDGED_UNITS = 32
"""Units whose reads are timed together: the time of a single read is mostly noise."""
TOLD_UNITS = 64
"""Units announced ahead to a slow disk, 20 MB: half as many gave the same rate, and a small page cache loses units that
were announced too early (with 512 units and a limit of 384 MiB, units were read 2.5 times).
"""
HORIZON_STEPS = 512
"""Most steps that a rank plans beyond its last delivered step."""


@dataclass(eq=False)
class DamagedRows(Exception):
    """Rows of a source that no copy can serve; the loader quarantines them or stops."""

    source: int
    rows: Ranges
    error: CorruptChunk


@dataclass(slots=True, kw_only=True)
class UnitBlock:
    """Consecutive planned steps and the reads of their units."""

    number: int
    """Number of the block, from 0."""
    plan: Plan
    assignment: Assignment
    gather: np.ndarray
    """int64 [F, M]: arena row of each row; 0 for fillers."""
    slots: list[Slot]
    """Slot of each real row, in order of forwards."""
    offsets: list[int]
    """Token position of each real row in its unit."""
    reads: list["Future[None]"] = field(default_factory=list)
    """Reads that must end before the rows may be gathered."""


class _UnitUses(NamedTuple):
    """Units that hold an assignment's R real rows, in order of first use."""

    keys: list[UnitKey]
    uses: list[int]  # rows of each unit
    inverse: np.ndarray  # int64 [R]: unit of each row
    offset: np.ndarray  # int64 [R]: row's place in its unit
    real: np.ndarray  # bool [F, M]: True for real rows


class Planner:
    """Iterates over blocks from sample `k` on, one thread at a time, until closed.

    The threads of a pool read the units. Without a pool the thread that requests a block reads its units: for a local
    store a handover to another thread would cost more than the read from the page cache.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: BatchSchedule,
        share: Share,
        readers: Readers,
        arena: RowArena,
        *,
        k: int,
        most: int = MAX_STEPS,
        pool: ThreadPoolExecutor | None = None,
        refresh: Callable[[], Plan] | None = None,
    ) -> None:
        """`most`: most steps of a block. `refresh` returns the plan with the newest entries of the order log."""
        self.plan = plan
        self._refresh = refresh
        self._ahead: Assignment | None = None
        self._schedule = schedule
        self._share = share
        self._readers = readers
        self._arena = arena
        self._most = most
        self._pool = pool
        self._stopped = False
        self._slow = True
        """True if reads of units wait for a disk rather than for a core."""
        self._reading = True
        """True if the last block had units to read."""
        self._told: set[UnitKey] = set()
        self._units_read, self._read_seconds = 0, 0.0
        self._blocks = self._planned(k)

    def __iter__(self) -> Iterator[UnitBlock]:
        return self._blocks

    @property
    def waits(self) -> bool:
        """True if a block mostly waits for a store or a disk, rather than for a core."""
        return self._pool is not None or (self._slow and self._reading)

    def close(self) -> None:
        """Stop planning, and end a wait for room in the arena."""
        self._stopped = True
        self._arena.release(self._arena.consumed)

    def _planned(self, k: int) -> Iterator[UnitBlock]:
        """Blocks from sample k on; ends when closed."""
        steps = 1
        for number in itertools.count():
            if self._refresh is not None and number % REFRESH_BLOCKS == 0:
                plan = self._refresh()
                if plan.log_head != self.plan.log_head:
                    self.plan, self._ahead = plan, None
            block, steps = self._plan_block(number, k, steps)
            if block is None:
                return
            yield block
            k = int(block.assignment.after[-1])
            steps = min(2 * steps, self._most)

    def _plan_block(self, number: int, k: int, steps: int) -> tuple[UnitBlock | None, int]:
        """The block of at most `steps` steps from sample k whose units fit into a third of the arena, so that a block
        in use, a ready block and a block being read fit together.
        """
        first = self._schedule.step_of(k)
        while True:
            assignment = self._assigned(k, first, steps)
            units = self._units(assignment)
            if len(units.keys) <= max(self._arena.capacity // 3, 1) or steps == 1:
                break
            steps //= 2
        self._require_room(units)
        absent: list[tuple[UnitKey, int]] = []
        for key, uses in zip(units.keys, units.uses, strict=True):
            if (slot := self._arena.slots.get(key)) is not None:
                slot.last_block = number
                slot.rows_left -= uses
            else:
                absent.append((key, uses))
        missing: list[Slot] = []
        for key, uses in absent:  # after the loop above, so that no slot of this block is evicted
            slot = self._arena.take(
                key,
                block=number,
                rows_left=self.plan.sources[key[0]].view.rows_per_unit - uses,
                stopped=lambda: self._stopped,
            )
            if slot is None:
                return None, steps
            missing.append(slot)
        block = self._gathered(number, assignment, units)
        reads = list(zip(missing, self._next_uses(missing, k), strict=True))
        if self._pool is not None:
            fetcher = self._readers.fetcher
            # Not for the first block, so that the first batch waits for its own units alone.
            regions = number > 0 and fetcher.region_bytes > 0
            by_region = regions and fetcher.whole_regions and not fetcher.tiers
            if regions and not by_region:
                block.reads += [self._pool.submit(self._advise, slot, next_use) for slot, next_use in reads]
            for group in self._of_regions(reads) if by_region else [[read] for read in reads]:
                future = self._pool.submit(self._read_group, group, by_region)
                for slot, _ in group:
                    slot.read = future
            block.reads += dict.fromkeys(slot.read for slot in block.slots if slot.read is not None)
            return block, steps
        self._reading = bool(reads)
        if reads:
            self._read_here(reads, int(assignment.after[-1]))
        return block, steps

    def check_memory(self, k: int) -> None:
        """Raise LittleMemory if the arena cannot hold the units of the step that begins with sample k."""
        self._require_room(self._units(assign(self.plan, self._schedule, self._share, k=k, steps=1)))

    def _require_room(self, units: _UnitUses) -> None:
        needed, held = len(units.keys), self._arena.capacity
        if needed > held:
            raise LittleMemory(
                f"one step of this rank needs {needed} units in host memory",
                found=f"memory_bytes for {held}",
                remedy=f"Raise memory_bytes {needed // held + 1}-fold.",
            )

    def _read_here(self, reads: list[tuple[Slot, int]], after: int) -> None:
        """Read units in this thread. Announce the next units to a slow disk, including units of the block that begins
        with sample `after`: concurrent requests are faster than successive requests.
        """
        coming = [slot.key for slot, _ in reads] + (self._coming(after) if self._slow else [])
        started = time.perf_counter()
        for place, (slot, next_use) in enumerate(reads):
            if self._slow:
                self._tell(coming[place : place + TOLD_UNITS])
            self._read(slot, next_use)
            self._told.discard(slot.key)
        self._judge(len(reads), time.perf_counter() - started)
        if self._slow:
            self._tell(coming[len(reads) :])

    def _coming(self, k: int) -> list[UnitKey]:
        """The first units outside the arena that samples from k on need."""
        first = self._schedule.step_of(k)
        rows = max(1, self._schedule.batch(first) // self._share.dp_size)
        steps = min(MAX_STEPS, -(-TOLD_UNITS // rows))
        units = self._units(assign(self.plan, self._schedule, self._share, k=k, steps=steps)).keys
        return [key for key in units if key not in self._arena.slots][:TOLD_UNITS]

    def _tell(self, keys: list[UnitKey]) -> None:
        for key in keys:
            if key not in self._told:
                self._told.add(key)
                self._readers.of(self.plan, key[0]).advise(key[1])

    def _judge(self, units: int, seconds: float) -> None:
        """Decide from the rate of reads if units are announced to the store."""
        self._units_read += units
        self._read_seconds += seconds
        if self._units_read >= JUDGED_UNITS:
            rate = self._units_read * self._arena.slot_bytes / self._read_seconds
            self._slow = rate < CACHED_BYTES_PER_SECOND
            self._units_read, self._read_seconds = 0, 0.0

    def _assigned(self, k: int, first: int, steps: int) -> Assignment:
        """The assignment of `steps` steps from step `first`, which begins with sample k."""
        ahead = self._ahead
        if ahead is None or not ahead.step[0] <= first <= first + steps - 1 <= ahead.step[-1]:
            batch = self._schedule.batch(first)
            ahead_steps = max(steps, min(ASSIGN_STEPS, ASSIGN_SAMPLES // batch)) if steps > 8 else steps
            ahead = assign(self.plan, self._schedule, self._share, k=k, steps=ahead_steps)
            self._ahead = ahead
        return ahead.part(first, first + steps)

    def _gathered(self, number: int, assignment: Assignment, units: _UnitUses) -> UnitBlock:
        """The block with the arena row of every row."""
        slots = [self._arena.slots[key] for key in units.keys]
        bases = np.array([slot.number * self._arena.rows_per_slot for slot in slots], dtype=np.int64)
        gather = np.zeros(assignment.k.shape, dtype=np.int64)
        gather[units.real] = bases[units.inverse] + units.offset
        row_tokens = self._arena.rows.shape[1]
        return UnitBlock(
            number=number,
            plan=self.plan,
            assignment=assignment,
            gather=gather,
            slots=[slots[i] for i in units.inverse.tolist()],
            offsets=(units.offset * row_tokens).tolist(),
        )

    def _units(self, assignment: Assignment) -> _UnitUses:
        """Units of the rows, in order of first use."""
        real = np.arange(assignment.k.shape[1]) < assignment.real[:, None]
        source, row = assignment.source[real], assignment.row[real]
        unit, offset = np.empty((2, len(row)), dtype=np.int64)
        for number in np.flatnonzero(np.bincount(source)).tolist():
            part = source == number
            unit[part], offset[part] = self.plan.sources[number].view.units.unit_of(row[part])
        joined = source.astype(np.int64) << 48 | unit
        _, first, inverse, uses = np.unique(joined, return_index=True, return_inverse=True, return_counts=True)
        by_use = np.argsort(first)
        place = np.empty_like(by_use)
        place[by_use] = np.arange(len(by_use))
        first = first[by_use]
        return _UnitUses(
            keys=list(zip(source[first].tolist(), unit[first].tolist(), strict=True)),
            uses=uses[by_use].tolist(),
            inverse=place[inverse],
            offset=offset,
            real=real,
        )

    def _next_uses(self, slots: list[Slot], k: int) -> list[int]:
        """Sample of each unit's next read, by which the node cache evicts. It lies in the source's next epoch, because
        the arena serves the unit in this epoch.
        """
        uses = [0] * len(slots)
        for source in {slot.key[0] for slot in slots} if self._readers.fetcher.cache is not None else ():
            view = self.plan.sources[source].view
            places = [i for i, slot in enumerate(slots) if slot.key[0] == source]
            # The last window has up to twice the units of another window.
            behind = self.plan.position(source, k) + 2 * view.window * view.rows_per_unit
            later = int(self.plan.k_of(source, np.array([behind], dtype=np.uint64))[0])
            units = np.array([slots[i].key[1] for i in places], dtype=np.uint64)
            if later < NEVER:
                for i, use in zip(places, self.plan.next_use(source, units, later).tolist(), strict=True):
                    uses[i] = use
        return uses

    def _of_regions(self, reads: list[tuple[Slot, int]]) -> Iterable[list[tuple[Slot, int]]]:
        """Reads in groups of about a region's units, which one request brings: a task a unit cost 5 % more CPU."""
        units = max(1, self._readers.fetcher.region_bytes // self._arena.slot_bytes)
        groups: dict[tuple[int, int], list[tuple[Slot, int]]] = {}
        for read in reads:
            source, unit = read[0].key
            groups.setdefault((source, unit // units), []).append(read)
        return groups.values()

    def _read_group(self, reads: list[tuple[Slot, int]], advise: bool) -> None:
        for slot, next_use in reads:
            if advise:
                self._advise(slot, next_use)
            self._read(slot, next_use)

    def _advise(self, slot: Slot, next_use: int) -> None:
        self._readers.of(self.plan, slot.key[0]).advise(slot.key[1], next_use)

    def _read(self, slot: Slot, next_use: int) -> None:
        """Read the slot's unit. Raises DamagedRows for all of its damaged rows that the plan may still deliver: each
        error costs a plan and the units read ahead of it.
        """
        source, unit = slot.key
        reader = self._readers.of(self.plan, source)
        slot.content, damaged = reader.read(unit, self._arena.tokens(slot), next_use)
        if damaged:
            tokens = self._arena.rows.shape[1]
            first = int(reader.view.units.id(np.array([unit]), np.array([0]))[0])
            found = [((first + start // tokens, first + -(-stop // tokens)), error) for start, stop, error in damaged]
            if new := [one for one in found if not self.plan.quarantined(source, one[0])]:
                raise DamagedRows(source, tuple(merged([rows for rows, _ in new])), new[0][1])
