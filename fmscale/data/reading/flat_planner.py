"""Planner of flat forwards: the samples of each step, the reads of their units, the forwards to be made of them.

A block is a step: dealing costs more than planning, and forwards are as many as fit into memory anyway.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.flat import FlatShare, FlatStep, assign_flat
from fmscale.data.plan.plan import NEVER, Plan
from fmscale.data.reading.arena import Arena, LittleMemory, Slot, UnitKey
from fmscale.data.reading.maker import Entry, ForwardJob, Maker, forward_bytes
from fmscale.data.reading.prefetch import MOST_BLOCKS
from fmscale.data.reading.sample_sources import SampleSources

ASSIGN_SAMPLES = 4096
"""Samples planned at once: a call for 64 samples costs 0.5 ms, a call for 4,096 less than twice that."""
REFRESH_STEPS = 16
"""Steps between two looks at the order log."""
HORIZON_STEPS = 64
"""An entry takes effect this many steps after its write: every rank is within MOST_BLOCKS steps of it, and reads the
entry before it plans REFRESH_STEPS more.
"""
assert HORIZON_STEPS > 2 * MOST_BLOCKS + REFRESH_STEPS


@dataclass(slots=True, kw_only=True)
class FlatBlock:
    """A planned step of a rank."""

    number: int
    """Number of the block, from 0."""
    plan: Plan
    step: FlatStep
    jobs: list[ForwardJob]
    reads: Sequence[Future[None]] = ()
    """Nothing to wait for: the jobs wait for their units."""


class FlatPlanner:
    """Iterates over steps from sample `k` on, one thread at a time, until closed."""

    waits = True
    """Other threads do the work of a block."""

    def __init__(
        self,
        plan: Plan,
        schedule: BatchSchedule,
        share: FlatShare,
        sources: SampleSources,
        arena: Arena,
        maker: Maker,
        pool: ThreadPoolExecutor,
        *,
        k: int,
        refresh: Callable[[], Plan] | None = None,
    ) -> None:
        """`refresh` returns the plan with the newest entries of the order log."""
        self.plan = plan
        self._schedule = schedule
        self._share = share
        self._sources = sources
        self._arena = arena
        self._maker = maker
        self._pool = pool
        self._refresh = refresh
        self._stopped = False
        self._blocks = self._planned(k)

    def __iter__(self) -> Iterator[FlatBlock]:
        return self._blocks

    def close(self) -> None:
        """Stop planning, and end a wait for room in the arena."""
        self._stopped = True
        self._arena.release(self._arena.consumed)

    def _planned(self, k: int) -> Iterator[FlatBlock]:
        steps: Iterator[FlatStep] = iter(())
        for number in itertools.count():
            if self._refresh is not None and number % REFRESH_STEPS == 0:
                plan = self._refresh()
                if plan.log_head != self.plan.log_head:
                    self.plan, steps = plan, iter(())
            step = next(steps, None)
            if step is None:
                steps = assign_steps(self.plan, self._schedule, self._share, self._sources, k)
                step = next(steps)
            block = self._block(number, step)
            if block is None:
                return
            yield block
            k = step.after

    def _block(self, number: int, step: FlatStep) -> FlatBlock | None:
        """The block of a step, with its reads begun; None once closed."""
        keys, offsets = unit_keys(self.plan, step)
        mine = [i for forward in step.forwards for i in forward if not step.lost[i]]
        near = dict.fromkeys(keys[i] for i in mine if step.near[i])
        require_room(self.plan, self._sources, self._arena, near)
        # Any rank of the node may make a sample of the node, so uses are counted over all of them.
        uses = Counter(keys[i] for i in np.flatnonzero(step.near).tolist())
        slots: dict[UnitKey, Slot] = {}
        absent = []
        for key in near:
            if (slot := self._arena.slots.get(key)) is not None:
                slot.last_block = number
                slot.rows_left -= uses[key]
                slots[key] = slot
            else:
                absent.append(key)
        for key in absent:  # after the loop above, so that no slot of this block is evicted
            size = self._sources.of(self.plan, key[0]).units.unit_bytes
            slot = self._arena.take(
                key,
                bytes=size,
                reserve=size,
                block=number,
                rows_left=self.plan.sources[key[0]].view.rows_per_unit - uses[key],
                stopped=lambda: self._stopped,
            )
            if slot is None:
                return None
            slot.read = self._pool.submit(self._read, slot, self._next_use(key, step))
            slots[key] = slot
        jobs = [self._job(step, forward, keys, offsets, slots) for forward in step.forwards]
        self._maker.add(jobs)
        return FlatBlock(number=number, plan=self.plan, step=step, jobs=jobs)

    def _job(
        self, step: FlatStep, forward: list[int], keys: list[UnitKey], offsets: list[int], slots: dict[UnitKey, Slot]
    ) -> ForwardJob:
        samples = step.samples
        entries = [
            Entry(
                k=int(samples.k[i]),
                source=int(samples.source[i]),
                row=int(samples.row[i]),
                length=int(step.lengths[i]),
                lost=bool(step.lost[i]),
                slot=slots.get(keys[i]) if step.near[i] else None,
                offset=offsets[i] if step.near[i] else 0,
            )
            for i in forward
        ]
        parts = self._sources.of(self.plan, entries[0].source if entries else 0).spec.parts
        tokens = sum(entry.length for entry in entries)
        return ForwardJob(plan=self.plan, entries=entries, bytes=forward_bytes(parts, tokens, len(entries)))

    def _read(self, slot: Slot, next_use: int) -> None:
        size = 0
        try:
            slot.content = self._sources.of(self.plan, slot.key[0]).units.read(slot.key[1], next_use)
            size = slot.content.bytes
        finally:
            self._arena.resize(slot, size)

    def _next_use(self, key: UnitKey, step: FlatStep) -> int:
        """Sample of the unit's next read, in the source's next epoch, by which the node cache evicts."""
        if self._sources.fetcher.cache is None:
            return 0
        source, unit = key
        view = self.plan.sources[source].view
        behind = self.plan.position(source, step.after) + 2 * view.window * view.rows_per_unit
        later = int(self.plan.k_of(source, np.array([behind], dtype=np.uint64))[0])
        use = int(self.plan.next_use(source, np.array([unit], dtype=np.uint64), later)[0]) if later < NEVER else NEVER
        return use if use < NEVER else 0


def assign_steps(
    plan: Plan, schedule: BatchSchedule, share: FlatShare, sources: SampleSources, k: int
) -> Iterator[FlatStep]:
    """Steps from sample k on, about ASSIGN_SAMPLES samples."""
    steps = max(1, min(REFRESH_STEPS, ASSIGN_SAMPLES // schedule.batch(schedule.step_of(k))))
    return assign_flat(plan, schedule, share, sources.lengths, k=k, steps=steps)


def unit_keys(plan: Plan, step: FlatStep) -> tuple[list[UnitKey], list[int]]:
    """Unit of each sample of a step, and its place in the unit."""
    samples = step.samples
    unit, offset = np.empty((2, len(samples.k)), dtype=np.int64)
    for source in np.unique(samples.source).tolist():
        part = samples.source == source
        unit[part], offset[part] = plan.sources[source].view.units.unit_of(samples.row[part])
    return list(zip(samples.source.tolist(), unit.tolist(), strict=True)), offset.tolist()


def require_room(plan: Plan, sources: SampleSources, arena: Arena, keys: dict[UnitKey, None]) -> None:
    """Raise LittleMemory if the units of a step do not fit into the arena."""
    needed = sum(sources.of(plan, source).units.unit_bytes for source, _ in keys)
    if needed > arena.memory_bytes:
        raise LittleMemory(
            f"one step of this rank needs {len(keys)} units of {needed} bytes in host memory",
            found=f"memory for {arena.memory_bytes} bytes of units",
            remedy=f"Raise memory_bytes {needed // arena.memory_bytes + 1}-fold.",
        )
