"""Saves a run's state during training: the snapshot is taken here, the persist process does the rest (promise P5)."""

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Condition
from typing import Any, Literal

from fmscale.checkpoint.format.names import checkpoint_folder
from fmscale.checkpoint.format.piece import Piece
from fmscale.checkpoint.persist.client import ProcessWriter
from fmscale.checkpoint.persist.job import LAST_EVENTS, SaveJob, SaveSettings
from fmscale.checkpoint.persist.worker import Worker
from fmscale.checkpoint.snapshot.snapshot import SnapshotSlot
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError
from fmscale.runtime.world import World
from fmscale.store.digest import canonical_json
from fmscale.store.open import parse_url

logger = logging.getLogger(__name__)

State = Literal["acknowledged", "failed", "retrying", "skipped"]


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """Outcome of a save on this rank, or notice of an attempt that is repeated."""

    step: int
    state: State
    """`acknowledged`: the log entry is durable. `failed`: the save made no checkpoint; the last good checkpoint stays.
    `retrying`: an attempt failed and is repeated. `skipped`: all snapshots were still being written."""
    reason: str = ""
    """Reason for every state but `acknowledged`."""
    time: float = field(default_factory=time.time)
    entry: int | None = None
    """Number of the log entry."""
    lease_lost: bool = False
    """True if a newer process took over the run: no later save can succeed either."""
    blocking_seconds: float = 0.0
    """Time that training waited, in `save` and at the fence."""
    snapshot_seconds: float = 0.0
    """From `save` until the copy was complete."""
    sealed_seconds: float = 0.0
    """From `save` until this rank's files were durable."""
    durable_seconds: float = 0.0
    """From `save` until the checkpoint was committed."""
    bytes_written: int = 0
    """Bytes of this rank's tensors that were written."""
    bytes_referenced: int = 0
    """Bytes of this rank's tensors that an earlier checkpoint already holds."""


@dataclass(kw_only=True)
class _Save:
    """A save under way."""

    step: int
    slot: SnapshotSlot | None
    begin: float
    facts: dict[str, Any] = field(default_factory=dict)
    """Fields of the save's report that are known so far."""


class Saver:
    """Saves of one rank. Every rank makes a Saver under the same lease, and all ranks call `save` in the same order.

    A failed save never raises: `poll` reports it.
    """

    def __init__(
        self, store_url: str, run: str, *, world: World, lease: int, config: CheckpointConfig, deadline: float = 60.0
    ) -> None:
        """`lease` is the number of the lease that rank 0 took of the run's log. `deadline` bounds a store
        request in seconds. Raises ConfigError for an unusable URL or run name.
        """
        checkpoint_folder(run, 0, lease)
        self._config = config
        self._settings = settings = SaveSettings(
            url=store_url,
            deadline=deadline,
            run=run,
            rank=world.rank,
            world_size=world.world_size,
            lease=lease,
            config=config,
        )
        self._changed = Condition()
        self._reports: deque[SaveReport] = deque()
        self._saves: dict[int, _Save] = {}
        self._open: set[int] = set()
        self._slots = [SnapshotSlot() for _ in range(config.buffers)]
        self._number = 0
        self.complete_next = False
        """True if the next save refers to no other checkpoint: the last were retired."""
        self._repeats: dict[int, int] = {}
        self._copying: _Save | None = None
        # Kept between saves: starting a thread takes milliseconds where all cores are busy.
        self._helper = ThreadPoolExecutor(config.buffers, thread_name_prefix="snapshot", initializer=_yield_to_training)
        self._helper.submit(int)
        self._handing: Future[None] | None = None
        self._preparing: Future[None] | None = None
        # No other process can write to a store in this process's memory.
        in_memory = parse_url(store_url).scheme == "memory"
        self._writer: Worker | ProcessWriter = (Worker if in_memory else ProcessWriter)(settings, self._on_event)

    def prepare(self, pieces: Sequence[Piece]) -> None:
        """Begin to allocate and pin the snapshots' memory for these pieces, in a thread beside training: the first save
        would wait 5 s for 17 GB. The next `fence` or `save` raises ConfigError if the memory lacks.
        """
        self._preparing = self._helper.submit(self._allocate, pieces)

    def _allocate(self, pieces: Sequence[Piece]) -> None:
        for number, slot in enumerate(self._slots):
            try:
                slot.prepare(pieces)
            except (OSError, MemoryError) as error:
                size = sum(piece.tensor.nbytes for piece in pieces)
                raise ConfigError(
                    f"rank {self._settings.rank} has no host memory for the snapshots that saves are written from",
                    found=f"{number} of {len(self._slots)} snapshots of {size / 1e9:.1f} GB: {error}",
                    remedy="Take checkpoint.buffers: 1, fewer ranks a node, or more nodes: each rank holds its part of "
                    "the state.",
                ) from error

    def save(
        self,
        step: int,
        pieces: Sequence[Piece],
        meta: dict[str, Any],
        rank_meta: dict[str, Any] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Take a snapshot, which the persist process writes. Call it after the optimizer's step, on every rank.

        `meta` is JSON of the checkpoint (loader state, counters, schedule; rank 0's is stored), `rank_meta` JSON of
        the rank (its RNG). Without overlap the pieces may change when this returns, with overlap after the next
        `fence`. If all snapshots are still being written, the save is skipped; with `wait`, meant for the last save
        of a run, it begins when a snapshot is free. Raises ConfigError for pieces that cannot be saved and for meta
        that is no JSON.
        """
        begin = time.perf_counter()
        self.fence()
        _check_json(meta, rank_meta)
        number, self._number = self._number, self._number + 1
        repeat = self._repeats[step] = self._repeats.get(step, -1) + 1
        slot = self._free_slot(wait)
        self._open.add(number)
        save = self._saves[number] = _Save(step=step, slot=slot, begin=begin)
        header = SaveJob(
            number=number,
            step=step,
            folder=checkpoint_folder(self._settings.run, step, self._settings.lease, repeat),
            complete=not self._config.incremental
            or self.complete_next
            or number % self._config.complete_every == 0
            or bool(self._config.keep_every and step % self._config.keep_every == 0),
            meta=meta if self._settings.rank == 0 else None,
            rank_meta=rank_meta,
        )
        if slot is None:
            self._refuse(header, "the snapshot before is still being written")
            return
        self.complete_next = False
        try:
            slot.prepare(pieces)
            slot.take(overlap=self._config.overlap)
        except ConfigError:
            slot.busy = False
            del self._saves[number]
            self._open.discard(number)
            raise
        except (OSError, MemoryError) as error:
            self._refuse(header, f"there is no memory for the snapshot: {error}")
            return
        self._copying = save
        self._handing = self._helper.submit(self._hand_over, save, slot, header)
        save.facts["blocking_seconds"] = time.perf_counter() - begin
        if not self._config.overlap:
            self.fence()

    def fence(self) -> None:
        """Wait until the optimizer may write to the pieces of the last save; a complete copy needs no wait. Call it
        right before each optimizer step. Raises ConfigError as `prepare` says.
        """
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.result()
        save, self._copying = self._copying, None
        if save is None or save.slot is None:
            return
        begin = time.perf_counter()
        save.slot.fence()
        save.facts["blocking_seconds"] += time.perf_counter() - begin

    def poll(self) -> list[SaveReport]:
        """Reports since the last call; never waits."""
        with self._changed:
            reports = list(self._reports)
            self._reports.clear()
        return reports

    def drain(self, deadline: float) -> bool:
        """Wait up to `deadline` seconds until every save is acknowledged or has failed, and retention has deleted
        expired checkpoints; True if both happened in time.
        """
        if self._preparing is not None:
            self._preparing.exception()  # waits; raised here, it would hide why a run ends before its first step
            self._preparing = None
        self.fence()
        if self._handing is not None:
            # The persist process may outlive this process, so it needs the whole copy.
            self._handing.result()
        self._writer.drain()
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout=deadline)

    def close(self, deadline: float = 600.0) -> list[SaveReport]:
        """Drain, end the persist process and free the memory; return the reports that `poll` has not returned.

        A save that is unfinished at the deadline is reported as failed. A separate persist process still finishes
        the save, but reports no outcome.
        """
        self.drain(deadline)
        self._writer.close()
        self._helper.shutdown(wait=False)
        with self._changed:
            for number in list(self._saves):
                self._end(number, state="failed", reason=f"not durable after {deadline:.0f} s")
        for slot in self._slots:
            slot.release()
        return self.poll()

    def _free_slot(self, wait: bool) -> SnapshotSlot | None:
        """Mark a free snapshot as busy and return it; None if all are being written."""
        with self._changed:
            if wait:
                free = lambda: any(not slot.busy for slot in self._slots)  # noqa: E731
                self._changed.wait_for(free, timeout=self._config.seal_seconds)
            slot = next((slot for slot in self._slots if not slot.busy), None)
            if slot is not None:
                slot.busy = True
            return slot

    def _refuse(self, job: SaveJob, reason: str) -> None:
        """Tell the other ranks that this rank has nothing to write for the save."""
        self._writer.submit(replace(job, refused=reason), None)

    def _hand_over(self, save: _Save, slot: SnapshotSlot, job: SaveJob) -> None:
        """Give the job to the writer, which writes while this thread completes the copy."""
        submitted = False
        try:
            memory, layout = slot.memory, slot.layout
            assert memory is not None
            assert layout is not None
            self._writer.submit(replace(job, memory=memory.number, layout=layout), memory)
            submitted = True
            slot.finish(partial(self._copied, save, job.number))
        except Exception as error:
            # Training goes on after any error here, and no rank may wait for this save.
            logger.exception("the snapshot of step %d failed", save.step)
            reason = f"the snapshot failed: {error}"
            if submitted:
                self._writer.copied(job.number, 0, reason)
            else:
                slot.abandon()
                self._on_event({"job": job.number, "event": "failed", "reason": reason, "lost": False})
                self._refuse(job, reason)

    def _copied(self, save: _Save, number: int, bytes: int) -> None:
        save.facts["snapshot_seconds"] = time.perf_counter() - save.begin
        self._writer.copied(number, bytes)

    def _on_event(self, event: dict[str, Any]) -> None:
        """Apply an event to its save; the writer's threads call this."""
        with self._changed:
            if event["event"] in LAST_EVENTS:
                self._open.discard(event["job"])
                self._changed.notify_all()
            save = self._saves.get(event["job"])
            if save is None:
                return
            now = time.perf_counter() - save.begin
            match event["event"]:
                case "sealed":
                    self._free(save)
                    save.facts["sealed_seconds"] = now
                    save.facts |= {"bytes_written": event["bytes"], "bytes_referenced": event["referenced"]}
                case "retrying":
                    logger.warning("save of step %d is tried again: %s", save.step, event["reason"])
                    self._reports.append(SaveReport(step=save.step, state="retrying", reason=event["reason"]))
                case "committed":
                    self._end(event["job"], state="acknowledged", entry=event["entry"], durable_seconds=now)
                case "failed":
                    state: State = "failed" if save.slot is not None else "skipped"
                    level = logging.ERROR if state == "failed" else logging.WARNING
                    logger.log(level, "save of step %d %s: %s", save.step, state, event["reason"])
                    self._end(event["job"], state=state, reason=event["reason"], lease_lost=event["lost"])
            self._changed.notify_all()

    def _end(self, number: int, **fields: Any) -> None:
        """End a save: report its outcome with its times and bytes."""
        save = self._saves.pop(number)
        self._free(save)
        self._reports.append(SaveReport(step=save.step, **save.facts, **fields))

    def _free(self, save: _Save) -> None:
        """Free the save's snapshot unless an earlier seal has freed it: a restarted persist process seals again, and
        another save may use the memory by then.
        """
        if save.slot is not None and "sealed_seconds" not in save.facts:
            save.slot.busy = False


def _yield_to_training() -> None:
    """Make the copy's thread wait for its turn on a busy core: otherwise each wake-up would take training's thread off
    its core for some milliseconds. The copy's thread keeps its share of time, and this needs no privilege.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _check_json(*values: dict[str, Any] | None) -> None:
    try:
        for value in values:
            canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "the meta of a checkpoint is no JSON",
            found=str(error),
            remedy="Use dicts with text keys, lists, texts, finite numbers, true, false and null.",
        ) from error
