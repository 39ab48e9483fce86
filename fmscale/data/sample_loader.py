"""The part of a loader that does not depend on the packing of samples: its place in the plan, state, order log, budget
of quarantine.
"""

import logging
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

import numpy as np

from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.order_log import OrderLog, replay
from fmscale.data.plan.plan import Plan, Ranges
from fmscale.data.reading.arena import Arena
from fmscale.data.reading.planner import DamagedRows
from fmscale.data.reading.prefetch import Prefetcher
from fmscale.data.views.placement import merged
from fmscale.errors import DataError, FmscaleError
from fmscale.store.tiers.fetch import Fetcher

logger = logging.getLogger(__name__)

STATE_VERSION = 1
MEMORY_BYTES = 2**30
"""Bytes of host memory for units: two shuffle windows of 2,048 units of 256 KiB."""
REMOTE_READ_THREADS = 16
"""Threads that read from a remote store."""
REGION_READ_THREADS = 8
"""The same where reads bring whole regions of 4 MiB: an epoch takes 8 % less CPU time than with 16, and 5 % longer."""
QUARANTINE_SHARE = 0.01
"""Share of a source's rows that a run may quarantine by default."""
QUARANTINE_ROWS = 256
"""Rows of a source that a run may quarantine however small the source: one unit of small records."""

Batch = TypeVar("Batch")


class SampleLoader(ABC, Generic[Batch]):
    """Iterates over this rank's microbatches, without end. A single thread may consume them."""

    _arena: Arena
    """Units in host memory: a delivered block's are released, those of an abandoned plan forgotten."""

    def __init__(
        self, plan: Plan, schedule: BatchSchedule, order_log: OrderLog | None, quarantine_share: float | None
    ) -> None:
        self.plan = plan
        self.schedule = schedule
        self.k = 0
        """First sample of the next step to deliver."""
        self.stall_seconds = 0.0
        """Seconds that the consumer waited for data, the first batch included."""
        self.changed_from: int | None = None
        """First sample that the log's stages and bans since the loaded state have changed; None without a change."""
        self._order_log = order_log
        self._quarantine_share = quarantine_share
        self._ahead: Prefetcher[Any] | None = None
        self._stream = self._batches()

    @property
    @abstractmethod
    def fetcher(self) -> Fetcher:
        """Reads of this rank, with their counts."""

    @abstractmethod
    def check_memory(self) -> None:
        """Raise LittleMemory if the next step does not fit into host memory. No sample is read."""

    @abstractmethod
    def _prefetcher(self) -> Prefetcher[Any]:
        """Begin to plan and read from sample `k` on."""

    @abstractmethod
    def _deliver(self, block: Any) -> Iterator[Batch]:
        """The microbatches of a block; sets `k` behind each complete step."""

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
        before = (len(recorded_plan.stages), len(recorded_plan.bans))
        later = [stage.from_k for stage in self.plan.stages[before[0] :]]
        # A quarantine, which names samples, changes nothing that was delivered before.
        later += [ban.from_k for ban in self.plan.bans[before[1] :] if not ban.samples]
        self.changed_from = min(later, default=None)

    def refresh(self) -> None:
        """Take the newest entries of the order log; call it before `load_state_dict`."""
        if self._order_log is not None:
            self.plan = self._order_log.refresh()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._stream)
        except Exception:
            self.close()
            raise

    def _batches(self) -> Iterator[Batch]:
        while True:
            block = self._next_block()
            yield from self._deliver(block)
            self._arena.release(block.number)
            del block  # it holds units, which the arena no longer counts

    def _next_block(self) -> Any:
        started = time.perf_counter()
        while True:
            if self._ahead is None:
                self._ahead = self._prefetcher()
                # The threads of a loader must end even if it is dropped without close().
                self._finalizer = weakref.finalize(self, self._ahead.close)
            try:
                block = self._ahead.take()
            except DamagedRows as damage:
                self._replace(damage)
                continue
            self.stall_seconds += time.perf_counter() - started
            if block.plan.log_head >= self.plan.log_head:
                self.plan = block.plan
            return block

    def _replace(self, damage: DamagedRows) -> None:
        """Quarantine damaged rows that a block would deliver, and plan again."""
        raise damage.error

    def _quarantine(self, source: int, rows: Ranges, from_k: int, samples: np.ndarray, error: FmscaleError) -> None:
        """Write rows that cannot be used to the order log. Raises `error` without an order log or a budget, and
        DataError beyond the budget.
        """
        if self._order_log is None or self._quarantine_share is None:
            raise error
        quarantined = [ban for ban in self.plan.bans if ban.source == source and ban.samples]
        # Entries of several ranks may name a row.
        taken = merged([*(pair for ban in quarantined for pair in ban.rows), *rows])
        count = sum(stop - first for first, stop in taken)
        total, label = self.plan.orders[source].units.N, self.plan.sources[source].label
        budget = max(int(self._quarantine_share * total), QUARANTINE_ROWS)
        if count > budget:
            raise DataError(
                f"{count} of the {total} rows of {label} cannot be used, more than the budget of {budget}",
                found=str(error),
                remedy="Run `fmscale dataset verify` and see to the store; or raise data.quarantine_share.",
            ) from error
        if not quarantined:
            logger.warning("rows %s of %s cannot be used and are left out: %s", rows, label, error)
        reason = str(error)[:300]
        self.plan = self._order_log.quarantine(
            source=source, rows=rows, from_k=from_k, samples=samples.tolist(), reason=reason
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
