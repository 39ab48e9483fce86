"""Thread of each rank that looks after the ranks while the main thread works or hangs.

The main thread may be in a call that neither hears of another rank's end nor runs Python's signal handlers: NCCL does
not notice a dead peer. This thread hears of a failure from the store, sees the end of a rank of its machine at once,
and hears a signal by `signal.set_wakeup_fd`. It tells where every rank is if no step ends.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmscale.errors import RankError
from fmscale.runtime.failure import Whereabouts, failure_report, write_first
from fmscale.runtime.peers import Peers
from fmscale.runtime.stop import STOP_SIGNALS, StopFlag
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.watched import Beats, Pace, WorkTime, state_of, tell_places, write_stacks, write_watched
from fmscale.runtime.world import World

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Pause between looks: 512 ranks then send 512 requests a second, 1 % of the store's thread."""
GRACE_SECONDS = 15.0
"""Time that the main thread has to end by itself: launchers kill 30 s after a stop."""
SILENT_SECONDS = 6.0
"""Silence of a rank after which it is lost, if another rank has lost a connection without a reason."""
PROBE_SECONDS = 2.0
SSH_PORT = 22
SLOW = 10
"""Steps of median length after which a step counts as hung."""
SLOW_SECONDS = 4.0
"""Shortest step that counts as slow: two looks."""
STATUS = 2
"""Exit status of `fmscale train` after an error."""


class Watchdog:
    """Looks after the ranks from `start` until `close`, which the main thread calls."""

    def __init__(
        self, store: "Store", world: World, where: Whereabouts, folder: Path, stop: StopFlag, *, limit: float
    ) -> None:
        """`limit`: seconds that a phase may take, and twice those of a step before it counts as hung.

        The store is cloned, as a request of the main thread may block the connection for minutes.
        """
        self._store: Any = store.clone()  # type: ignore[attr-defined]
        self._waits = HostWaits(self._store, world)
        self._world, self._where, self._folder, self._stop, self._limit = world, where, folder, stop, limit
        self._peers: Peers | None = None
        self._ends: tuple[float, str] | None = None
        """Time and words of a failure of another rank."""
        self._told: tuple[float, str] | None = None
        """Time and name of the first stop signal."""
        self._pace, self._work, self._beats, self._explained = Pace(), WorkTime(), Beats(), 0.0
        self._slowest = 0.0
        """Seconds of the slowest step that was told."""
        self._lock, self._closed, self._leaving = threading.Lock(), False, False
        self._asks = 0.0
        """Time of the request to the store that has no answer yet; 0 without one."""
        self._thread: threading.Thread | None = None
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals = -1
        self._tell_state()

    def start(self, identities: Sequence[str]) -> None:
        """Begin, once all ranks have met; `identities` are theirs, by rank. Main thread only."""
        self._peers = Peers(self._world.rank, identities)
        for end in self._peers.gone:
            self._lose(end)
        self._signals = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="watchdog's guard", daemon=True).start()

    def leave(self) -> None:
        """Take no rank's end for a failure any more: called before the last wait of the run."""
        self._leaving = True

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._thread is not None:
            signal.set_wakeup_fd(self._signals)
            os.write(self._wake[1], b"\0")
            self._thread.join(LOOK_SECONDS)
        if self._thread is None or not self._thread.is_alive():
            for descriptor in (*self._wake, *(self._peers.descriptors if self._peers else ())):
                os.close(descriptor)

    def _run(self) -> None:
        assert self._peers is not None
        poll = select.poll()
        for descriptor in (*self._peers.descriptors, self._wake[0]):
            poll.register(descriptor, select.POLLIN)
        while not self._closed:
            try:
                self._turn()
            except Exception:
                logger.exception("rank %d: the watchdog did not look", self._world.rank)
            for descriptor, _ in poll.poll(LOOK_SECONDS * 1000):
                if descriptor == self._wake[0]:
                    self._hear(os.read(descriptor, 64))
                else:
                    poll.unregister(descriptor)
                    self._lose(self._peers.end(descriptor))

    def _guard(self) -> None:
        """End this process if the store gives no answer: a request to a host that is cut off blocks its thread for 15
        minutes, also that of a main thread which tells its failure.
        """
        while not self._closed:
            time.sleep(LOOK_SECONDS)
            asks = self._asks
            silent = time.monotonic() - asks if asks else 0.0
            if silent > self._limit / 2:
                gone = f"{self._served} gave no answer for {silent:.0f} s: it or this host is cut off, or it is gone"
                self._where.lost = self._where.lost or gone
                if silent > self._limit / 2 + GRACE_SECONDS:
                    self._end(self._where.lost, alone=True)

    @property
    def _served(self) -> str:
        """Words for the store, with the host that serves it."""
        host = self._world.master[0] if self._world.master else "rank 0's host"
        return f"the store on {host}, which rank 0 or its launcher serves,"

    def _turn(self) -> None:
        from torch.distributed import DistError

        now = self._asks = time.monotonic()
        self._pace.count(self._where.step, now)
        self._work.count(self._where.moved, now)
        slow = SLOW * self._pace.median
        try:
            failure = self._waits.failure()
            self._tell_state()
            if self._world.rank == 0:
                self._look_after()
        except DistError:
            failure = self._where.lost = self._where.lost or f"{self._served} is gone"
        self._asks = 0.0
        # A main thread whose failure is recorded is ending: it says what happened.
        if self._where.recorded is not None:
            return
        if failure and self._ends is None and not self._leaving:
            self._ends = now, failure
            logger.warning("rank %d hears that %s", self._world.rank, failure)
        if self._ends and now - self._ends[0] >= GRACE_SECONDS:
            self._end(self._ends[1])
        if self._told and not self._stop and now - self._told[0] >= max(GRACE_SECONDS, slow):
            self._end(f"it was told to stop by {self._told[1]}, and is in a call that does not return")
        long = max(slow, self._limit / 2) if slow and self._where.phase == "train" else self._limit
        took = now - self._where.moved
        if took > long and self._explained != self._where.moved:
            self._explained = self._where.moved
            self._explain(took)
        elif self._world.rank == 0 and slow and self._where.phase == "train":
            self._tell_slow(took, slow)

    def _hear(self, numbers: bytes) -> None:
        for number in numbers:
            if number in STOP_SIGNALS and self._told is None:
                self._told = time.monotonic(), signal.Signals(number).name

    def _lose(self, end: str) -> None:
        """Report a rank's end, unless a failure is reported: it was killed, or crashed."""
        if not (self._closed or self._leaving):
            self._where.lost = self._where.lost or end
            self._waits.report(end)

    def _tell_state(self) -> None:
        state = state_of(self._world.rank, self._where, self._work.seconds)
        self._store.set(f"watch/{self._world.rank}", json.dumps(state))

    def _look_after(self) -> None:
        """Write the states of all ranks, and report a rank that tells none any more."""
        states = self._beats.silence(self._states(), LOOK_SECONDS)
        write_watched(self._folder, states)
        patience = min(self._limit / 2, SILENT_SECONDS) if any(state["seeks"] for state in states) else self._limit / 2
        for state in states:
            if state["silent"] >= patience and not self._leaving:
                name = f"rank {state['rank']} on {state['host']}"
                self._waits.report(f"{name} told nothing for {state['silent']:.0f} s: {_silence(state['host'])}")
                return

    def _states(self) -> list[dict[str, Any]]:
        keys = [f"watch/{rank}" for rank in range(self._world.world_size)]
        return [json.loads(value) for value in self._store.multi_get(keys)]

    def _tell_slow(self, took: float, slow: float) -> None:
        """Say where the ranks are in a step that takes far longer than others, and twice as long as told before."""
        if took > max(slow, SLOW_SECONDS, 2 * self._slowest):
            self._slowest = took
            line = "step %s takes %.0f s so far, and %.2f s before: a rank or its host is slow. %s."
            logger.warning(line, self._where.step, took, slow / SLOW, tell_places(self._states()))

    def _explain(self, seconds: float, alone: bool = False) -> None:
        """Write the stacks of all threads, and say where every rank is, unless this rank is `alone`."""
        from torch.distributed import DistError

        try:
            places = "The other ranks are not asked" if alone else tell_places(self._states())
        except DistError as error:
            places = f"the store does not say where the other ranks are: {error}"
        line = f"rank {self._world.rank}: no end of {self._where.phase} at step {self._where.step} for {seconds:.0f} s"
        path = self._folder / f"stacks-rank{self._world.rank:05d}.txt"
        logger.warning("%s. %s. %s.", line, places, write_stacks(path, f"{line}. {places}"))

    def _end(self, cause: str, alone: bool = False) -> None:
        """End this process, whose main thread does not end by itself. `alone`: the store gives no answer."""
        with self._lock:
            if self._closed or (self._where.recorded is not None and not alone):
                return
            self._explain(time.monotonic() - self._where.moved, alone)
            error: BaseException = RankError(
                f"rank {self._world.rank} ends, as {cause}",
                remedy="That rank's error.json and log, or the lines of its launcher, say more; the same command goes "
                "on from the newest checkpoint.",
            )
            error = self._where.recorded or error
            logger.error("%s", error)
            if not alone:
                self._waits.report(f"rank {self._world.rank} ended, as {cause}")
            with suppress(OSError):
                write_first(self._folder, failure_report(error, self._world, self._where))
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(STATUS)


def _silence(host: str) -> str:
    """Words for the silence of a rank, by an attempt to reach its host. Any answer counts, a refusal too."""
    try:
        socket.create_connection((host, SSH_PORT), timeout=PROBE_SECONDS).close()
    except socket.gaierror:
        return "it was killed or stopped, or its host is cut off or gone"
    except ConnectionRefusedError:
        pass
    except OSError as error:
        return f"its host gives no answer ({error.strerror or error}): it is cut off or gone"
    return "its host answers, so it was killed or stopped; its launcher's lines there say more"
