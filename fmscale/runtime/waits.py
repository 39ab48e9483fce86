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
from concurrent import futures
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fmscale.errors import RankError
from fmscale.runtime.late_values import LateValues
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.world import World
from fmscale.text import scrub

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

logger = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.002
LONGEST_PAUSE = 0.25
"""Pauses between looks grow from the shortest to the longest: short waits end quickly, and long waits send few
requests to rank 0. (The store's own timed wait warns on stderr at each timeout.)"""
HEED_A_RANK = 0.008
"""Least time between two looks for a failure, for each rank: 512 waiting ranks send 125 a second. The watchdog of each
hears of a failure within 2 s."""
COLLECTOR_PAUSE = 0.05
"""Longest pause of a rank that collects the arrivals at a barrier: the others wait for it."""
MARGIN_SECONDS = 60.0
"""Time that a request of the store waits beyond a wait's own deadline."""
FEW = 8
"""Ranks up to which each looks for the arrivals by itself. Of more, rank 0 collects, and publishes one value for which
a thread of each other rank waits (`late_values.py`)."""
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
        self._heed = max(LONGEST_PAUSE, HEED_A_RANK * world.world_size)
        self._late = LateValues(store) if world.world_size > FEW else None
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

        def there() -> list[int]:
            return [other for other in ranks if self._store.check([keys[other]])]

        found = self._await_keys(name, list(keys.values()), there, ranks, deadline, stop)
        self._waited[name] = use
        return [value.decode() for value in found]

    def barrier(
        self, name: str, *, value: str = "", deadline: float = 3600.0, stop: StopFlag | None = None
    ) -> list[str]:
        """Wait until every rank is here; return their values by rank. Raises the errors of `wait`.

        Arrivals are lines of one key. N ranks send 2 N requests, and rank 0 a few more for each look that came early:
        a request for each rank's value from each rank would be 262,144 at 512 ranks, 3.4 s of the store's one thread.
        """
        use = self._waited.get(name, 0) + 1
        everyone = range(self._world.world_size)
        here, joint = _keys(name, use)
        self._store.append(here, json.dumps([self.rank, value]) + "\n")

        def arrivals() -> dict[int, str]:
            return dict(json.loads(line) for line in self._store.get(here).splitlines())

        def collected() -> list[str] | None:
            found = arrivals()
            return [found[other] for other in everyone] if len(found) == len(everyone) else None

        if self.rank == 0 or len(everyone) <= FEW:
            values = self._await(name, collected, arrivals, everyone, deadline, stop, longest=COLLECTOR_PAUSE)
        else:
            [packed] = self._await_keys(name, [joint], arrivals, everyone, deadline, stop)
            values = list(json.loads(zlib.decompress(packed)))
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

    def _await_keys(
        self,
        name: str,
        keys: list[str],
        arrived: Callable[[], Collection[int]],
        awaited: Sequence[int],
        deadline: float,
        stop: StopFlag | None,
    ) -> list[bytes]:
        """The values of the keys, once all are there."""
        if self._late is None:

            def look() -> list[bytes] | None:
                return list(self._store.multi_get(keys)) if self._store.check(keys) else None

            return self._await(name, look, arrived, awaited, deadline, stop)
        answer = self._late.ask(keys, deadline + MARGIN_SECONDS)
        try:
            return self._await(
                name,
                lambda: answer.result() if answer.done() else None,
                arrived,
                awaited,
                deadline,
                stop,
                pause=LONGEST_PAUSE,
                sleep=lambda seconds: futures.wait([answer], seconds),
            )
        except BaseException:
            self._late.drop()
            raise

    def _await(
        self,
        name: str,
        look: Callable[[], T | None],
        arrived: Callable[[], Collection[int]],
        awaited: Sequence[int],
        deadline: float,
        stop: StopFlag | None,
        *,
        pause: float = SHORTEST_PAUSE,
        longest: float = LONGEST_PAUSE,
        sleep: Callable[[float], object] | None = None,
    ) -> T:
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
                if late or now - heard >= self._heed:
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
                (sleep or time.sleep)(min(pause, max(0.0, deadline - waited)))
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
