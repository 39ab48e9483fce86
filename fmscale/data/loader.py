"""Loader: microbatches of a plan, planned and fetched ahead, verified, delivered from reused buffers.

A batch costs the training thread one gather and one widening. The loader uses threads and no worker processes.

    plan ── assign ──► blocks of steps ── units ──► arena (host memory) ── gather, widen ──► Microbatch
            planner thread              reader threads                     the caller's thread
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fmscale.data.batch import Microbatch
from fmscale.data.plan.assign import Share, assign
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.plan.plan import Plan
from fmscale.data.reading.arena import BufferPool, RowArena
from fmscale.data.reading.planner import HORIZON_STEPS, MAX_STEPS, DamagedRows, Planner, UnitBlock
from fmscale.data.reading.prefetch import Prefetcher
from fmscale.data.reading.readers import Readers, token_views
from fmscale.data.sample_loader import (
    MEMORY_BYTES,
    QUARANTINE_SHARE,
    REGION_READ_THREADS,
    REMOTE_READ_THREADS,
    SampleLoader,
)
from fmscale.errors import ConfigError
from fmscale.store.tiers.fetch import Fetcher

logger = logging.getLogger(__name__)


class Loader(SampleLoader[Microbatch]):
    """Iterates over this rank's microbatches, without end. A single thread may consume them.

    Without `order_log` a chunk that no copy can serve raises CorruptChunk. With `order_log` the loader quarantines the
    damaged rows and delivers other rows instead.
    """

    _arena: RowArena

    def __init__(
        self,
        plan: Plan,
        schedule: BatchSchedule,
        readers: Readers,
        *,
        dp_rank: int = 0,
        dp_size: int = 1,
        micro_batch: int | None = None,
        memory_bytes: int = MEMORY_BYTES,
        read_threads: int | None = None,
        prefetch: bool = True,
        order_log: OrderLog | None = None,
        quarantine_share: float | None = QUARANTINE_SHARE,
    ) -> None:
        """Takes the opened arguments of `open_loader`, and the run's order log. Without a `quarantine_share` a chunk
        that no copy can serve raises CorruptChunk all the same.

        If the units of a shuffle window exceed the memory, units are read more than once. With `read_threads=None` the
        thread that plans also reads from a local store, and 16 threads read from a remote store.
        """
        if not 0 <= dp_rank < dp_size:
            raise ConfigError(
                "dp_rank must lie in [0, dp_size)",
                found=(dp_rank, dp_size),
                remedy="Give both as the launcher set them: `read_world()` has them.",
            )
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(
                "micro_batch must be at least 1", found=micro_batch, remedy="Leave it out for one forward a step."
            )
        super().__init__(plan, schedule, order_log, quarantine_share)
        self._readers = readers
        self._share = Share(dp_rank=dp_rank, dp_size=dp_size, micro_batch=micro_batch)
        views = token_views(plan)
        view = views[0]
        local = readers.fetcher.backend.local_path("local") is not None
        self._arena = RowArena(
            memory_bytes=memory_bytes,
            rows_per_slot=max(view.rows_per_unit for view in views),
            row_tokens=view.sequence_length,
            dtype=np.dtype(view.dtype),
            huge_pages=local,
        )
        self._warn_of_little_memory()
        if read_threads is None:
            remote = REGION_READ_THREADS if readers.fetcher.whole_regions else REMOTE_READ_THREADS
            read_threads = 0 if local else remote
        self._read_threads = read_threads
        self._prefetch = prefetch
        self._buffers = BufferPool(np.dtype(view.dtype), view.sequence_length)

    @property
    def fetcher(self) -> Fetcher:
        """Reads of this rank, with their counts."""
        return self._readers.fetcher

    def _warn_of_little_memory(self) -> None:
        """Warn where the shuffle windows do not fit: a row whose unit was evicted costs a second read of the unit."""
        windows = sum(min(order.window, order.units.n) for order in self.plan.orders)
        needed = -(-windows // self._share.dp_size)
        if self._arena.capacity < needed:
            logger.warning(
                "the loader's memory holds %d of the %d units that are shuffled among one another, so units will "
                "be read many times: give it %d MiB (data.memory_bytes), or a smaller window (data.window)",
                self._arena.capacity,
                needed,
                -(-needed * self._arena.rows.nbytes // (self._arena.capacity << 20)),
            )

    def _prefetcher(self) -> Prefetcher[UnitBlock]:
        pool = ThreadPoolExecutor(self._read_threads, "fmscale-read") if self._read_threads else None
        return Prefetcher(self._planner(pool), prefetch=self._prefetch, pool=pool)

    def check_memory(self) -> None:
        """Raise LittleMemory if the next step does not fit into host memory. Nothing is read."""
        self._planner(None).check_memory(self.k)

    def _planner(self, pool: ThreadPoolExecutor | None) -> Planner:
        return Planner(
            self.plan,
            self.schedule,
            self._share,
            self._readers,
            self._arena,
            k=self.k,
            most=MAX_STEPS if self._prefetch else 1,
            pool=pool,
            refresh=self._order_log.refresh if self._order_log else None,
        )

    def _deliver(self, block: UnitBlock) -> Iterator[Microbatch]:
        rows, narrow = self._arena.rows, self._buffers.narrow(block.gather.shape[1])
        assignment, ahead = block.assignment, self._ahead
        assert ahead is not None
        sizes = assignment.real.tolist()
        documents = [slot.content for slot in block.slots]
        at = 0
        for forward, (gather, real) in enumerate(zip(block.gather, sizes, strict=True)):
            rows.take(gather, axis=0, out=narrow, mode="clip")
            if real < len(gather):
                narrow[real:] = 0
            wide = self._buffers.take(len(gather))
            np.copyto(wide, narrow)
            last = bool(assignment.last[forward])
            batch = Microbatch(
                tokens=torch.from_numpy(wide),
                k=assignment.k[forward, :real],
                row_source=assignment.source[forward, :real],
                row=assignment.row[forward, :real],
                step=int(assignment.step[forward]),
                last_of_step=last,
                documents=documents[at : at + real],
                offsets=block.offsets[at : at + real],
            )
            at += real
            if last:
                self.k = int(assignment.after[forward])
            ahead.away_since = time.perf_counter()
            yield batch

    def _replace(self, damage: DamagedRows) -> None:
        """Write the damaged rows to the order log, then plan again from the first undelivered step."""
        step = self.schedule.step_of(self.k)
        from_k = int(self.schedule.kappa(step + 2 * HORIZON_STEPS + 2))
        ahead = assign(self.plan, self.schedule, self._share, k=self.k, steps=2 * HORIZON_STEPS + 2)
        real = np.arange(ahead.k.shape[1]) < ahead.real[:, None]
        named = np.logical_or.reduce([(ahead.row >= start) & (ahead.row < stop) for start, stop in damage.rows])
        lost = real & (ahead.source == damage.source) & named
        self._stop_ahead()
        self._quarantine(damage.source, damage.rows, from_k, ahead.k[lost], damage.error)
