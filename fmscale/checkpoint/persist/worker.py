"""Work of the persist process in two stages: the steps from the snapshot to the seal, then commit (rank 0) or wait for
the commit.

While the second stage waits for other ranks, the first stage may store the next save: a save's memory is free once
the rank has sealed.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Condition, Event, Lock, Thread
from typing import Any, TypeVar

from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.format.seal import Seal
from fmscale.checkpoint.persist import heartbeat
from fmscale.checkpoint.persist.commit import RunState, await_commit, commit_seals, gather_seals
from fmscale.checkpoint.persist.file_writer import THREADS
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings, Tell
from fmscale.checkpoint.persist.rank_part import discard, refusal, refuse, store_seal, stored_seal, write_files
from fmscale.checkpoint.persist.retention import tidy
from fmscale.checkpoint.persist.step import Known, PersistStep, Save
from fmscale.checkpoint.snapshot.copy_progress import EVERYTHING, NEXT, CopyProgress, SaveFailed
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.errors import Conflict, FmscaleError, LeaseLost, StoreError, StoreUnavailable
from fmscale.store.log.entry import LogEntry
from fmscale.store.open import open_store

logger = logging.getLogger(__name__)

STEPS: tuple[PersistStep, ...] = (write_files, store_seal)
"""Steps from the snapshot to the commit, in order. The seal is the last: rank 0 commits once all ranks have sealed."""

FIRST_PAUSE = 0.5
"""Seconds before a failed attempt is repeated; doubled each time. The store's own retries run inside an attempt."""

NICENESS = 10
"""Niceness of the threads that digest and write: training comes first on a shared core. The commit thread keeps
its priority, because a commit is short and other ranks wait for it.
"""

T = TypeVar("T")


def _give_way() -> None:
    """Lower this thread's priority; on Linux each thread has its own niceness."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class Worker:
    """One rank's saves, one after another, each by all of `steps`. The worker's threads call `tell` with each event."""

    def __init__(self, settings: SaveSettings, tell: Tell, steps: Sequence[PersistStep] = STEPS) -> None:
        self._settings = settings
        self._steps = tuple(steps)
        assert self._steps[-1] is store_seal, "rank 0 may commit after the seal, whatever follows it"
        self._report = tell
        self._backend = open_store(settings.url, deadline=settings.deadline)
        self._log = run_log(self._backend, settings.run)
        self._state = RunState()
        self._known: Known = {}
        self._named: set[str] = set()
        self._swept: set[str] = set()
        self._to_store: SimpleQueue[tuple[SaveJob, memoryview, CopyProgress] | None] = SimpleQueue()
        self._to_commit: SimpleQueue[tuple[SaveJob, Seal] | None] = SimpleQueue()
        self._closing = Event()
        self._alone = Event()
        self._open: dict[int, SaveJob] = {}
        self._copies: dict[int, CopyProgress] = {}
        self._beating = False
        self._resolved = Condition()
        self._unresolved = 0
        self._lock = Lock()
        # Kept between saves: starting a thread takes milliseconds where all cores are busy.
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="write", initializer=_give_way)
        self._threads = [
            Thread(target=self._store_nicely, name="persist", daemon=True),
            Thread(target=self._loop, args=(self._to_commit, self._commit), name="commit", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def idle(self) -> bool:
        """True if no job is open."""
        with self._lock:
            return not self._open

    def submit(self, job: SaveJob, memory: SharedMemory | None) -> None:
        """Queue a job behind earlier jobs. It writes bytes of the memory that `copied` has made final; these bytes must
        not change until the job is sealed or has failed.
        """
        copied = CopyProgress(0)
        with self._lock:
            self._open[job.number] = job
            if memory is not None:
                self._copies[job.number] = copied
        self._to_store.put((job, memory.view if memory is not None else memoryview(b""), copied))

    def copied(self, number: int, bytes: int, failed: str = "") -> None:
        """Make a job's memory final up to `bytes` (EVERYTHING at the end), or end its copy for the reason `failed`."""
        with self._lock:
            copied = self._copies.get(number)
            if failed or bytes == EVERYTHING:
                self._copies.pop(number, None)
        if copied is not None:
            copied.fail(failed) if failed else copied.advance(bytes)

    def drain(self) -> None:
        """Show the other ranks from now on that this rank is at work, because the trainer may end before its jobs
        are complete.
        """
        if not self._beating:
            self._beating = True
            Thread(target=self._beat, name="beat", daemon=True).start()

    def left_alone(self) -> None:
        """End the open copies, as the trainer has ended; the trainers of other ranks may have ended too."""
        self._alone.set()
        with self._lock:
            copies = list(self._copies.values())
        for copied in copies:
            copied.fail("the trainer ended in the middle of its copy")

    def _beat(self) -> None:
        number = 0
        while not self._closing.wait(heartbeat.BEAT_SECONDS):
            with self._lock:
                jobs = list(self._open.values())
            for job in jobs:
                number += 1
                self._quietly(partial(heartbeat.beat, self._backend, job.folder, self._settings.rank, number))

    def close(self, deadline: float = 10.0) -> None:
        """Give up unfinished jobs and end the threads."""
        self._closing.set()
        with self._resolved:
            self._resolved.notify_all()
        self._to_store.put(None)
        self._to_commit.put(None)
        for thread in self._threads:
            thread.join(deadline)
        self._pool.shutdown(wait=False)

    def _loop(self, queue: "SimpleQueue[Any]", work: Callable[..., bool]) -> None:
        while (item := queue.get()) is not None:
            try:
                done = work(*item)
            except Exception as error:
                # An unforeseen error must not end the thread: later saves would never be acknowledged.
                logger.exception("save of step %d failed unexpectedly", item[0].step)
                self._refuse(item[0], f"{type(error).__name__}: {error}")
                self._failed(item[0], error)
                done = True
            if done:
                with self._lock:
                    self._open.pop(item[0].number, None)
                self._tell(item[0], "done")

    def _store_nicely(self) -> None:
        _give_way()
        self._loop(self._to_store, self._store)

    def _store(self, job: SaveJob, memory: memoryview, copied: CopyProgress) -> bool:
        """Run the first stage; True if the job ends with it."""
        if job.refused:
            self._refuse(job, job.refused)
            self._failed(job, SaveFailed(job.refused, remedy=NEXT))
            return True
        if self._settings.config.incremental and not job.complete:
            # References to a checkpoint older than the last would race with retention, which is based on the last.
            with self._resolved:
                self._resolved.wait_for(lambda: not self._unresolved or self._closing.is_set())
        try:
            seal = self._retried(job, lambda attempt: self._sealed(job, memory, copied, attempt))
        except FmscaleError as error:
            reason = str(error)
            self._quietly(lambda: discard(self._backend, self._settings, job))
            self._refuse(job, reason)
            self._failed(job, error)
            return True
        self._tell(job, "sealed", bytes=seal.bytes, referenced=seal.referenced)
        with self._resolved:
            self._unresolved += 1
        self._to_commit.put((job, seal))
        return False

    def _sealed(self, job: SaveJob, memory: memoryview, copied: CopyProgress, attempt: int) -> Seal:
        """Make one attempt at all steps, and return the seal."""
        if attempt or job.attempt:
            # An earlier attempt may have sealed before it died or lost the answer; other ranks may have read its seal.
            seal = stored_seal(self._backend, job, self._settings.rank)
            if seal is not None:
                return seal
        if job.sealed:
            raise SaveFailed(f"the seal of step {job.step} is gone", remedy="Another process deleted it.")
        save = Save(
            backend=self._backend,
            settings=self._settings,
            job=job,
            memory=memory,
            copied=copied,
            known=self._known,
            pool=self._pool,
            closing=self._closing,
        )
        for step in self._steps:
            step(save)
        assert save.seal is not None, "a step has written the files"
        return save.seal

    def _commit(self, job: SaveJob, seal: Seal) -> bool:
        """Run the second stage; True, as every job ends with it."""
        known: Known = {}
        try:
            entry = self._entry(job, seal)
            if self._settings.config.incremental:
                known = {piece.range: (seal.files[piece.file], piece) for piece in seal.pieces if piece.digest}
        except FmscaleError as error:
            if not isinstance(error, StoreUnavailable) and (self._settings.rank == 0 or self._given_up(job)):
                # No process will commit this save any more. Where that is uncertain, the files stay for `tidy`.
                reason = str(error)
                if self._settings.rank == 0:
                    self._refuse(job, reason)
                self._quietly(lambda: discard(self._backend, self._settings, job))
            self._failed(job, error)
            return True
        finally:
            # After a failure on any rank, the next save refers to no earlier checkpoint.
            with self._resolved:
                self._known, self._unresolved = known, self._unresolved - 1
                self._resolved.notify_all()
        self._tell(job, "committed", entry=entry.number)
        if self._settings.rank == 0:
            self._quietly(lambda: tidy(self._log, self._settings, self._state, self._named, self._swept))
        return True

    def _entry(self, job: SaveJob, seal: Seal) -> LogEntry:
        if self._settings.rank:
            return await_commit(self._log, self._settings, job, self._state, self._closing.is_set, self._alone.is_set)
        if job.attempt and (reason := refusal(self._backend, job, 0)):
            raise SaveFailed(reason, remedy=NEXT)
        seals = gather_seals(self._backend, self._settings, job, seal, self._closing.is_set, self._alone.is_set)
        return self._retried(job, lambda _: commit_seals(self._log, self._settings, job, seals, self._state))

    def _refuse(self, job: SaveJob, reason: str) -> None:
        self._quietly(lambda: refuse(self._backend, self._settings, job, reason))

    def _given_up(self, job: SaveJob) -> bool:
        try:
            return refusal(self._backend, job, 0) is not None
        except StoreError:
            return False

    def _retried(self, job: SaveJob, attempt: Callable[[int], T]) -> T:
        """Call `attempt(n)`, and repeat it after a StoreError that may pass. Raises the last error."""
        pause = FIRST_PAUSE
        for number in range(self._settings.config.retries + 1):
            try:
                return attempt(number)
            except (LeaseLost, Conflict):
                raise
            except StoreError as error:
                if number == self._settings.config.retries or self._closing.is_set():
                    raise
                self._tell(job, "retrying", reason=str(error))
                self._closing.wait(pause)
                pause *= 2
        raise AssertionError("the last attempt returned or raised")

    def _failed(self, job: SaveJob, error: BaseException) -> None:
        self._tell(job, "failed", reason=str(error), lost=isinstance(error, LeaseLost))

    def _tell(self, job: SaveJob, event: str, **more: Any) -> None:
        self._report({"job": job.number, "event": event, **more})

    def _quietly(self, call: Callable[[], object]) -> None:
        """Make a call that may fail without harm: another call reports the save's outcome."""
        try:
            call()
        except FmscaleError as error:
            logger.warning("%s", error)
