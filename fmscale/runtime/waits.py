"""Named and timed waits for other ranks, on the host (promise P8).

A collective that waits for slow work (ingest, a download, a restore) ends in a watchdog's message without rank or work.
A wait here says "rank 3 waits 60 s for rank 0 in ingest", and ends at its own deadline or at another rank's failure.
"""

import json
import logging
import socket
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fmscale.errors import RankError
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.world import World
from fmscale.text import scrub

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.002
LONGEST_PAUSE = 0.25
"""Pauses between looks grow from the shortest to the longest: short waits end quickly, and long waits send few
requests to rank 0. (The store's own timed wait warns on stderr at each timeout.)"""
PAUSE_A_RANK = 0.002
"""Least of the longest pause for each rank: 512 waiting ranks send 500 looks a second, as 125 do. At 4 looks a second
each, a start and restore of 512 took 2.0 s of the store's one thread."""
FIRST_PAUSE_A_RANK = 1e-4
"""Time until the values of a barrier are there, for each rank: two requests, which take the store 20 to 40 us each."""
COLLECTOR_PAUSE = 0.05
"""Longest pause of a rank that collects the arrivals at a barrier: the others wait for it."""
FEW = 8
"""Ranks up to which each collects the arrivals by itself; of more ranks rank 0 collects, and publishes one value."""
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
        self._store: Any = store  # torch's stub lacks `append`
        self._world = world
        self.rank = world.rank
        self._notice_seconds = notice_seconds
        self._longest = max(LONGEST_PAUSE, PAUSE_A_RANK * world.world_size)
        self._arrived: dict[str, int] = {}
        self._waited: dict[str, int] = {}

    def arrive(self, name: str, value: str = "") -> None:
        """Tell the ranks that `wait` for this rank that it has done `name`, and give them `value`."""
        use = self._arrived[name] = self._arrived.get(name, 0) + 1
        self._store.set(f"wait/{name}/{use}/{self.rank}", value)

    def wait(
        self, name: str, *, ranks: Sequence[int], deadline: float = 3600.0, stop: StopFlag | None = None
    ) -> list[str]:
        """Wait until `ranks` have arrived at `name`; return the values of their arrivals.

        Raises RankError after `deadline` seconds, STOP_SECONDS after `stop` was set, at a rank's report of its
        failure, or when rank 0, which serves the store, is gone.
        """
        use = self._waited.get(name, 0) + 1
        keys = {other: f"wait/{name}/{use}/{other}" for other in ranks}

        def look() -> list[str] | None:
            found = list(keys.values())
            return [value.decode() for value in self._store.multi_get(found)] if self._store.check(found) else None

        def there() -> list[int]:
            return [other for other in ranks if self._store.check([keys[other]])]

        values = self._await(name, look, there, ranks, deadline, stop, SHORTEST_PAUSE, self._longest)
        self._waited[name] = use
        return values

    def barrier(
        self, name: str, *, value: str = "", deadline: float = 3600.0, stop: StopFlag | None = None
    ) -> list[str]:
        """Wait until every rank is here; return their values by rank. Raises the errors of `wait`.

        Arrivals are lines of one key. N ranks send 3 N requests or fewer, and two more for each look that came early:
        a request for each rank's value from each rank would be 262,144 at 512 ranks, 3.4 s of the store's one thread.
        """
        use = self._waited.get(name, 0) + 1
        everyone = range(self._world.world_size)
        here, joint = _keys(name, use)
        collects = self.rank == 0 or len(everyone) <= FEW
        self._store.append(here, json.dumps([self.rank, value]) + "\n")

        def arrivals() -> dict[int, str]:
            return dict(json.loads(line) for line in self._store.get(here).splitlines())

        def collected() -> list[str] | None:
            found = arrivals()
            return [found[other] for other in everyone] if len(found) == len(everyone) else None

        def published() -> list[str] | None:
            packed = self._peek(joint)
            return list(json.loads(zlib.decompress(packed))) if packed else None

        first = SHORTEST_PAUSE
        if not collects:
            first = max(first, FIRST_PAUSE_A_RANK * len(everyone))
            time.sleep(first)  # rank 0 has not collected yet: a look now would be in vain
        look, longest = (collected, COLLECTOR_PAUSE) if collects else (published, self._longest)
        values = self._await(name, look, arrivals, everyone, deadline, stop, first, longest)
        self._waited[name] = use
        if self.rank == 0:
            many = len(everyone) > FEW
            if many:
                # The values of ranks are alike: 512 ranks would read 80 MB of them in a start and restore.
                self._store.set(joint, zlib.compress(json.dumps(values).encode(), 1))
            # every rank has reached this use of the name, so no rank can still read the use before
            for key in _keys(name, use - 1)[: 1 + many] if use > 1 else ():
                self._store.delete_key(key)
        return values

    def part(self) -> None:
        """The last call of every rank. Rank 0, which may serve the store, returns when no other rank needs it any more:
        a rank that looks after the server has ended would fail behind a last barrier that all had reached. A rank that
        does not come within STOP_SECONDS has ended.
        """
        from torch.distributed import DistNetworkError

        end = time.monotonic() + STOP_SECONDS
        with suppress(DistNetworkError):
            parted = self._store.add("parted", 1)
            while self.rank == 0 and parted < self._world.world_size and time.monotonic() < end:
                time.sleep(COLLECTOR_PAUSE)
                parted = self._store.add("parted", 0)

    def fail(self, error: BaseException, phase: str) -> None:
        """Tell the other ranks of this rank's failure; their errors name the first. Without the store no rank waits."""
        self.report(f"rank {self.rank} on {socket.gethostname()} failed in {phase}: {scrub(str(error))}")

    def report(self, failure: str) -> None:
        """Tell all ranks of a failure of any rank, unless a rank has reported one."""
        from torch.distributed import DistNetworkError

        with suppress(DistNetworkError):
            self._store.compare_set(FAILED, "", failure)

    def failure(self) -> str:
        """The first failure that a rank has reported; empty without a failure. Raises torch's DistNetworkError."""
        return self._peek(FAILED).decode(errors="replace")

    def _await(
        self,
        name: str,
        look: Callable[[], list[str] | None],
        arrived: Callable[[], Collection[int]],
        awaited: Sequence[int],
        deadline: float,
        stop: StopFlag | None,
        pause: float,
        longest: float,
    ) -> list[str]:
        """The values that `look` finds, once all of `awaited` are in `arrived`; the pauses grow from `pause`."""
        from torch.distributed import DistNetworkError

        begin = noticed = heard = time.monotonic()
        reason = ""
        try:
            while (values := look()) is None:
                now = time.monotonic()
                waited = now - begin
                if stop and not reason:
                    reason = told_to_stop(stop)
                    deadline = min(deadline, waited + STOP_SECONDS)
                late = waited >= deadline
                if late or now - heard >= self._longest:
                    heard = now
                    self._raise_failure(name, waited)
                if late or now - noticed >= self._notice_seconds:
                    noticed, there = now, arrived()
                    # If all are there, rank 0 has still to say so.
                    missing = name_ranks([other for other in awaited if other not in there] or [0])
                    if late:
                        raise RankError(
                            f"rank {self.rank} waited {waited:.0f} s for {missing} in {name}{reason}",
                            remedy=f"Look at the log of {missing}; allow more time if the work needs it.",
                        )
                    logger.warning("rank %d waits %.0f s for %s in %s", self.rank, waited, missing, name)
                time.sleep(min(pause, max(0.0, deadline - waited)))
                pause = min(2 * pause, longest)
        except DistNetworkError as error:
            raise RankError(
                f"rank {self.rank} lost its connection to rank 0 while it waited in {name}",
                remedy="Rank 0 ended or its node is gone; its error.json and log have the cause.",
            ) from error
        waited = time.monotonic() - begin
        if waited >= self._notice_seconds:
            logger.warning("rank %d waited %.0f s for %s in %s", self.rank, waited, name_ranks(awaited), name)
        return values

    def _raise_failure(self, name: str, waited: float) -> None:
        if cause := self.failure():
            remedy = "That rank's error.json and log have the cause."
            raise RankError(f"rank {self.rank} waited {waited:.0f} s in {name} when {cause}", remedy=remedy)

    def _peek(self, key: str) -> bytes:
        """The value of a key, or b"" if there is none, in one request: a store's `get` waits for a missing key."""
        value: bytes = self._store.compare_set(key, "?", "?")
        return b"" if value == b"?" else value


def told_to_stop(stop: StopFlag) -> str:
    """End of a sentence with the reason why a wait ended early."""
    return f", the last seconds after it was told to stop ({stop.reason.name})"


def name_ranks(ranks: Sequence[int]) -> str:
    """Ranks for people: "rank 3", "ranks 1, 2"; of many the first eight."""
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _keys(name: str, use: int) -> tuple[str, str]:
    """Keys of a barrier: the arrivals, and the values that rank 0 publishes."""
    return f"barrier/{name}/{use}", f"barrier/{name}/{use}/values"
