"""Named and timed waits for other ranks, on the host (promise P8).

A collective that waits for slow work (ingest, a download, a restore) ends in a watchdog's message without rank or work.
A wait here says "rank 3 waits 60 s for rank 0 in ingest", and ends at its own deadline or at another rank's failure.
"""

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fmscale.errors import RankError
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.world import World
from fmscale.text import scrub

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.002
LONGEST_PAUSE = 0.25
"""Pauses between polls grow from the shortest to the longest: short waits end quickly, and long waits send few
requests to rank 0. (The store's own timed wait warns on stderr at each timeout.)"""
FAILED = "failed"
NOTICE_SECONDS = 30.0
STOP_SECONDS = 15.0
"""Longest wait for other ranks after a stop: they may only be slower to start, and launchers kill after 30 s."""


class HostWaits:
    """Named waits of the ranks of one run over a key-value store.

    A name may be used repeatedly: its n-th wait is for its n-th arrivals. Use a name either
    with `barrier`, or with `arrive` on some ranks and `wait` on others.
    """

    def __init__(self, store: "Store", world: World, *, notice_seconds: float = NOTICE_SECONDS) -> None:
        self._store = store
        self._world = world
        self.rank = world.rank
        self._notice_seconds = notice_seconds
        self._arrived: dict[str, int] = {}
        self._waited: dict[str, int] = {}

    def arrive(self, name: str, value: str = "") -> None:
        """Tell the other ranks that this rank has done `name`, and give them `value`."""
        use = self._arrived[name] = self._arrived.get(name, 0) + 1
        self._store.set(_key(name, use, self.rank), value)

    def wait(
        self, name: str, *, ranks: Sequence[int] | None = None, deadline: float = 3600.0, stop: StopFlag | None = None
    ) -> list[str]:
        """Wait until `ranks` (None: all) have arrived at `name`; return the values of their arrivals.

        Raises RankError after `deadline` seconds, STOP_SECONDS after `stop` was set, at a rank's report of its
        failure, or when rank 0, which serves the store, is gone.
        """
        from torch.distributed import DistNetworkError

        use = self._waited.get(name, 0) + 1
        awaited = range(self._world.world_size) if ranks is None else ranks
        begin = noticed = time.monotonic()
        pause = SHORTEST_PAUSE
        reason = ""
        try:
            while missing := self._missing(name, use, awaited):
                waited = time.monotonic() - begin
                self._raise_failure(name, waited)
                if stop and not reason:
                    reason = told_to_stop(stop)
                    deadline = min(deadline, waited + STOP_SECONDS)
                if waited >= deadline:
                    raise RankError(
                        f"rank {self.rank} waited {waited:.0f} s for {_ranks(missing)} in {name}{reason}",
                        remedy=f"Look at the log of {_ranks(missing)}; allow more time if the work needs it.",
                    )
                if time.monotonic() - noticed >= self._notice_seconds:
                    noticed = time.monotonic()
                    logger.warning("rank %d waits %.0f s for %s in %s", self.rank, waited, _ranks(missing), name)
                time.sleep(min(pause, max(0.0, deadline - waited)))
                pause = min(2 * pause, LONGEST_PAUSE)
            waited = time.monotonic() - begin
            if waited >= self._notice_seconds:
                logger.warning("rank %d waited %.0f s for %s in %s", self.rank, waited, _ranks(awaited), name)
            self._waited[name] = use
            return [self._store.get(_key(name, use, other)).decode() for other in awaited]
        except DistNetworkError as error:
            raise RankError(
                f"rank {self.rank} lost its connection to rank 0 while it waited in {name}",
                remedy="Rank 0 ended or its node is gone; its error.json and log have the cause.",
            ) from error

    def barrier(
        self, name: str, *, value: str = "", deadline: float = 3600.0, stop: StopFlag | None = None
    ) -> list[str]:
        """Wait until every rank is here; return their values by rank. Raises the errors of `wait`."""
        self.arrive(name, value)
        values = self.wait(name, deadline=deadline, stop=stop)
        use = self._waited[name]
        if use > 1:
            # every rank has reached this use of the name, so no rank can still read the use before
            self._store.delete_key(_key(name, use - 1, self.rank))
        return values

    def fail(self, error: BaseException, phase: str) -> None:
        """Tell waiting ranks of this rank's failure; their errors name the first. Without the store no rank waits."""
        from torch.distributed import DistNetworkError

        text = f"rank {self.rank} on {socket.gethostname()} failed in {phase}: {scrub(str(error))}"
        with suppress(DistNetworkError):
            self._store.compare_set(FAILED, "", text)

    def _raise_failure(self, name: str, waited: float) -> None:
        if self._store.check([FAILED]):
            cause = self._store.get(FAILED).decode(errors="replace")
            remedy = "That rank's error.json and log have the cause."
            raise RankError(f"rank {self.rank} waited {waited:.0f} s in {name} when {cause}", remedy=remedy)

    def _missing(self, name: str, use: int, awaited: Sequence[int]) -> list[int]:
        if self._store.check([_key(name, use, other) for other in awaited]):
            return []
        return [other for other in awaited if not self._store.check([_key(name, use, other)])]


def told_to_stop(stop: StopFlag) -> str:
    """End of a sentence with the reason why a wait ended early."""
    return f", the last seconds after it was told to stop ({stop.reason.name})"


def _key(name: str, use: int, rank: int) -> str:
    return f"wait/{name}/{use}/{rank}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
