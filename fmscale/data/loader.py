"""Loader: microbatches of a plan, planned and fetched ahead, verified, delivered from reused buffers.

A batch costs the training thread one gather and one widening. The loader uses threads and no worker processes.

    plan ── assign ──► blocks of steps ── units ──► arena (host memory) ── gather, widen ──► Microbatch
            planner thread              reader threads                     the caller's thread
"""

import logging
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch

from fmscale.data.batch import Microbatch
from fmscale.data.plan.assign import Share, assign
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.order_log import OrderLog, replay
from fmscale.data.plan.plan import Plan
from fmscale.data.reading.arena import Arena, BufferPool
from fmscale.data.reading.planner import HORIZON_STEPS, MAX_STEPS, DamagedRows, Planner, UnitBlock
from fmscale.data.reading.prefetch import Prefetcher
from fmscale.data.reading.readers import Readers
from fmscale.errors import ConfigError, DataError
from fmscale.store.tiers.fetch import Fetcher

logger = logging.getLogger(__name__)

STATE_VERSION = 1
MEMORY_BYTES = 2**30
"""Bytes of host memory for units: two shuffle windows of 2,048 units of 256 KiB."""
REMOTE_READ_THREADS = 16


class Loader:
    """Iterates over this rank's microbatches, without end. A single thread may consume them.

    Without `order_log` a chunk that no copy can serve raises CorruptChunk. With `order_log` the loader quarantines the
    damaged rows and delivers other rows instead.
    """

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
    ) -> None:
        """Takes the opened arguments of `open_loader`, and the run's order log if damaged rows may be quarantined.

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
        self.plan = plan
        self.schedule = schedule
        self.k = 0
        """First sample of the next step to deliver."""
        self.stall_seconds = 0.0
        """Seconds that the consumer waited for data, the first batch included."""
        self._readers = readers
        self._share = Share(dp_rank=dp_rank, dp_size=dp_size, micro_batch=micro_batch)
        self._order_log = order_log
        views = [source.view for source in plan.sources]
        view = views[0]
        self._arena = Arena(
            memory_bytes=memory_bytes,
            rows_per_slot=max(view.rows_per_unit for view in views),
            row_tokens=view.sequence_length,
            dtype=np.dtype(view.dtype),
        )
        self._warn_of_little_memory()
        local = readers.fetcher.backend.local_path("local") is not None
        self._read_threads = (0 if local else REMOTE_READ_THREADS) if read_threads is None else read_threads
        self._prefetch = prefetch
        self._ahead: Prefetcher | None = None
        self._buffers = BufferPool(np.dtype(view.dtype), view.sequence_length)
        self._stream = self._batches()

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

    def state_dict(self) -> dict[str, Any]:
        """State from which a loader continues: version, k, digest of the plan, head of the order log. It is below 1 KiB
        and equal on all ranks; inside a step it names the beginning of that step.
        """
        return {"version": STATE_VERSION, "k": self.k, "plan": self.plan.digest, "order_log": self.plan.log_head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at `state`, at any number of ranks and any batch size. Raises DataError for another plan's state."""
        if state.get("version") != STATE_VERSION:
            raise DataError(
                "loader state of another version",
                found=state.get("version"),
                remedy=f"This fmscale reads version {STATE_VERSION}.",
            )
        # The order log may have grown since the state was taken: compare with the plan at the state's log head.
        recorded_plan = replay(self._order_log.log, head=state["order_log"]) if self._order_log else self.plan
        if recorded_plan is None or state["plan"] != recorded_plan.digest:
            raise DataError(
                "the loader state belongs to another plan (data, seed or mixture)",
                found=f"state {state['plan']}, this run {recorded_plan and recorded_plan.digest}",
                remedy="Restore the run's data section, or start from k=0 on purpose.",
            )
        self.close()
        self.k = int(state["k"])

    def __iter__(self) -> Iterator[Microbatch]:
        return self

    def __next__(self) -> Microbatch:
        return next(self._stream)

    def _batches(self) -> Iterator[Microbatch]:
        while True:
            block = self._next_block()
            yield from self._deliver(block)
            self._arena.release(block.number)

    def _next_block(self) -> UnitBlock:
        started = time.perf_counter()
        while True:
            if self._ahead is None:
                threads = self._read_threads
                pool = ThreadPoolExecutor(threads, "fmscale-read") if threads else None
                self._ahead = Prefetcher(self._planner(pool), prefetch=self._prefetch, pool=pool)
                # The threads of a loader must end even if it is dropped without close().
                self._finalizer = weakref.finalize(self, self._ahead.close)
            try:
                block = self._ahead.take()
            except DamagedRows as damage:
                self._quarantine(damage)
                continue
            self.stall_seconds += time.perf_counter() - started
            self.plan = block.plan
            return block

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
                source=assignment.source[forward, :real],
                row=assignment.row[forward, :real],
                step=int(assignment.step[forward]),
                last_of_step=last,
                documents=block.documents[at : at + real],
                offsets=block.offsets[at : at + real],
            )
            at += real
            if last:
                self.k = int(assignment.after[forward])
            ahead.away_since = time.perf_counter()
            yield batch

    def _quarantine(self, damage: DamagedRows) -> None:
        """Write the damaged rows to the order log, then plan again from the first undelivered step."""
        if self._order_log is None:
            raise damage.error
        step = self.schedule.step_of(self.k)
        from_k = int(self.schedule.kappa(step + 2 * HORIZON_STEPS + 2))
        ahead = assign(self.plan, self.schedule, self._share, k=self.k, steps=2 * HORIZON_STEPS + 2)
        real = np.arange(ahead.k.shape[1]) < ahead.real[:, None]
        first, last = damage.rows
        lost = real & (ahead.source == damage.source) & (ahead.row >= first) & (ahead.row < last)
        self._stop_ahead()
        self.plan = self._order_log.quarantine(
            source=damage.source, rows=damage.rows, from_k=from_k, samples=ahead.k[lost].tolist()
        )

    def close(self) -> None:
        """End the threads. The next iteration starts at the first step that was not delivered completely."""
        self._stop_ahead()
        self._stream = self._batches()

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._finalizer()
            self._ahead = None
            self._arena.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
