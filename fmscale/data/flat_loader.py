"""Loader of flat forwards: samples of any kind, dealt to forwards by their lengths, made in threads ahead of training.

plan ── assign_flat ──► steps ── units ──► arena ── decode, make ──► FlatForward
        planner thread          reader threads      the same threads   the caller's thread takes them in order
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fmscale.data.forward import FlatForward, flat_forward
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.flat import FlatShare
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.plan.plan import Plan
from fmscale.data.reading.arena import Arena, LittleMemory
from fmscale.data.reading.flat_planner import (
    HORIZON_STEPS,
    FlatBlock,
    FlatPlanner,
    assign_steps,
    require_room,
    unit_keys,
)
from fmscale.data.reading.maker import BadSample, ForwardJob, MadeForward, Maker, concatenated, forward_bytes
from fmscale.data.reading.prefetch import Prefetcher
from fmscale.data.reading.sample_sources import SampleSources
from fmscale.data.sample_loader import MEMORY_BYTES, QUARANTINE_SHARE, REMOTE_READ_THREADS, SampleLoader
from fmscale.store.tiers.fetch import Fetcher

DECODED_SHARE = 4
"""Part of the memory for forwards that are made ahead: a quarter, or two forwards if these are more."""


class FlatLoader(SampleLoader[FlatForward]):
    """Iterates over this rank's flat forwards, as many in each step as every other rank has.

    A record that cannot be read or decoded raises its error without `order_log`. With it, the record's sample has no
    content, the order log names the row, and other rows take its place from a later sample on.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: BatchSchedule,
        sources: SampleSources,
        share: FlatShare,
        *,
        memory_bytes: int = MEMORY_BYTES,
        threads: int | None = None,
        order_log: OrderLog | None = None,
        quarantine_share: float | None = QUARANTINE_SHARE,
    ) -> None:
        """`threads` read and make; None: a thread for each core of the rank, or 16 for a remote store. Without a
        `quarantine_share` a record's error is raised all the same.

        Raises LittleMemory if two forwards do not fit into `memory_bytes`.
        """
        super().__init__(plan, schedule, order_log, quarantine_share)
        self._sources = sources
        self._share = share
        local = sources.fetcher.backend.local_path("local") is not None
        cores = max(1, len(os.sched_getaffinity(0)) // max(share.nodes))
        self._threads = threads or (cores if local else max(cores, REMOTE_READ_THREADS))
        parts = sources.of(plan, 0).spec.parts
        self._per_sample = frozenset(name for name, part in parts.items() if not part.per_token)
        forward = forward_bytes(parts, share.forward_tokens, schedule.batch(0))
        self.decoded_bytes = max(memory_bytes // DECODED_SHARE, 2 * forward)
        """Host memory for forwards that are made ahead."""
        if self.decoded_bytes > memory_bytes // 2:
            raise LittleMemory(
                f"two forwards of {share.forward_tokens} tokens take {2 * forward} bytes of host memory",
                found=f"memory_bytes {memory_bytes}",
                remedy=f"Give memory_bytes {4 * forward} or more, or take shorter forwards.",
            )
        self._arena = Arena(memory_bytes - self.decoded_bytes)

    @property
    def fetcher(self) -> Fetcher:
        """Reads of this rank, with their counts."""
        return self._sources.fetcher

    def check_memory(self) -> None:
        """Raise LittleMemory if the units of the next step do not fit into host memory. Reads sizes alone."""
        step = next(assign_steps(self.plan, self.schedule, self._share, self._sources, self.k))
        keys, _ = unit_keys(self.plan, step)
        mine = dict.fromkeys(keys[i] for forward in step.forwards for i in forward if step.near[i])
        require_room(self.plan, self._sources, self._arena, mine)

    def filler(self, tokens: int) -> FlatForward:
        """A forward of `tokens` tokens without a sample: all of it is padding."""
        spec = self._sources.of(self.plan, 0).spec
        made = MadeForward(*concatenated(spec.parts, [], tokens), [], [])
        return _forward(made, ForwardJob(plan=self.plan, entries=[], bytes=0), 0, self._per_sample, last=True)

    def _prefetcher(self) -> Prefetcher[FlatBlock]:
        pool = ThreadPoolExecutor(self._threads, "fmscale-make")
        self._maker = Maker(self._sources, pool, self.decoded_bytes)
        planner = FlatPlanner(
            self.plan,
            self.schedule,
            self._share,
            self._sources,
            self._arena,
            self._maker,
            pool,
            k=self.k,
            refresh=self._order_log.refresh if self._order_log else None,
        )
        return Prefetcher(planner, prefetch=True, pool=pool)

    def _deliver(self, block: FlatBlock) -> Iterator[FlatForward]:
        for number, job in enumerate(block.jobs):
            started = time.perf_counter()
            assert job.future is not None, "the forwards before it are delivered, so it was begun"
            made, job.future = job.future.result(), None
            self.stall_seconds += time.perf_counter() - started
            if made.bad:
                self._record_bad(block, made.bad)
            last = number + 1 == len(block.jobs)
            if last:
                self.k = block.step.after
            yield _forward(made, job, block.step.step, self._per_sample, last=last)
            del made
            self._maker.delivered(job)

    def _record_bad(self, block: FlatBlock, bad: list[BadSample]) -> None:
        """Write rows that cannot be used to the order log, before their samples are delivered without content."""
        # A block that was planned before an entry has the entry's rows again.
        found = self.plan.samples(np.array([sample.entry.k for sample in bad], dtype=np.uint64))
        by_source: dict[int, list[BadSample]] = defaultdict(list)
        for sample, lost in zip(bad, self.plan.lost(found).tolist(), strict=True):
            if not lost:
                by_source[sample.entry.source].append(sample)
        for source, samples in by_source.items():
            rows = np.array(sorted({sample.entry.row for sample in samples}), dtype=np.uint64)
            from_k = int(self.schedule.kappa(block.step.step + HORIZON_STEPS))
            coming = self.plan.samples(np.arange(int(block.step.samples.k.min()), from_k, dtype=np.uint64))
            hit = (coming.source == source) & np.isin(coming.row, rows) & ~self.plan.lost(coming)
            listed = np.union1d(coming.k[hit], np.array([s.entry.k for s in samples], dtype=np.uint64))
            ranges = tuple((int(row), int(row) + 1) for row in rows)
            self._quarantine(source, ranges, from_k, listed, samples[0].error)


def _forward(made: MadeForward, job: ForwardJob, step: int, per_sample: frozenset[str], *, last: bool) -> FlatForward:
    def column(name: str, dtype: str) -> np.ndarray:
        return np.array([getattr(entry, name) for entry in job.entries], dtype=dtype)

    return flat_forward(
        made.parts,
        made.weights,
        made.cu_seqlens,
        made.bounds,
        k=column("k", "uint64"),
        sample_source=column("source", "uint16"),
        row=column("row", "uint64"),
        step=step,
        last_of_step=last,
        pieces=made.pieces,
        per_sample=per_sample,
    )
