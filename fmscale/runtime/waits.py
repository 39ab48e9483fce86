"""Waiting for other ranks on the host, by name and with a clock (promise P8).

A collective that waits for slow work (ingest, a download, a restore) ends after minutes in a watchdog's
message that names neither the rank nor the work. Here a wait says "rank 3 waits 60 s for rank 0 in ingest",
gives up at its own deadline, and gives up at once when another rank has failed.
"""

import logging
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from fmscale.errors import RankError
from fmscale.runtime.scrub import scrub
from fmscale.runtime.world import World

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""A waiting rank looks this often whether another has failed; the arrival itself wakes it at once."""
FAILED = "failed"


class HostWaits:
    """Named waits of the ranks of one run over a key-value store.

    A name may be used again and again: the n-th wait for it is for the n-th arrivals. Use a name either
    with `barrier`, or with `arrive` on some ranks and `wait` on others.
    """

    def __init__(self, store: "Store", world: World, *, notice_seconds: float = 30.0) -> None:
        self._store = store
        self._world = world
        self._notice_seconds = notice_seconds
        self._arrived: dict[str, int] = {}
        self._waited: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        """Time that this rank waited, by name."""

    def arrive(self, name: str, value: str = "") -> None:
        """Tell the others that this rank is through with `name`, and give them `value`."""
        use = self._arrived[name] = self._arrived.get(name, 0) + 1
        self._store.set(_key(name, use, self._world.rank), value)

    def wait(self, name: str, *, ranks: Sequence[int] | None = None, deadline: float = 3600.0) -> list[str]:
        """Wait until `ranks` (all, unless said otherwise) have arrived at `name`; the values they gave.

        Raises RankError after `deadline` seconds, or as soon as a rank has reported its failure.
        """
        rank, use = self._world.rank, self._waited.get(name, 0) + 1
        wanted = list(range(self._world.world_size)) if ranks is None else list(ranks)
        begin = time.monotonic()
        noticed = begin
        missing = wanted
        while True:
            missing = [other for other in missing if not self._store.check([_key(name, use, other)])]
            now = time.monotonic()
            if not missing:
                break
            self._raise_failure(name, now - begin)
            if now - begin >= deadline:
                raise RankError(
                    f"rank {rank} waited {now - begin:.0f} s for {_ranks(missing)} in {name}",
                    remedy=f"Look at the log of {_ranks(missing)}; allow more time if the work needs it.",
                )
            if now - noticed >= self._notice_seconds:
                noticed = now
                logger.warning("rank %d waits %.0f s for %s in %s", rank, now - begin, _ranks(missing), name)
            self._sleep(_key(name, use, missing[0]), min(POLL_SECONDS, deadline - (now - begin)))
        waited = time.monotonic() - begin
        self.seconds[name] = self.seconds.get(name, 0.0) + waited
        if waited >= self._notice_seconds:
            logger.warning("rank %d waited %.0f s for %s in %s", rank, waited, _ranks(wanted), name)
        self._waited[name] = use
        return [self._store.get(_key(name, use, other)).decode() for other in wanted]

    def barrier(self, name: str, *, value: str = "", deadline: float = 3600.0) -> list[str]:
        """Wait until every rank is here; the values that they brought, by rank."""
        self.arrive(name, value)
        values = self.wait(name, deadline=deadline)
        use = self._waited[name]
        if use > 1:
            # every rank has come to this use, so none can still read the one before
            self._store.delete_key(_key(name, use - 1, self._world.rank))
        return values

    def fail(self, error: BaseException, phase: str) -> None:
        """Tell the ranks that wait that this one will not come; the first to say so is the one they name."""
        text = f"rank {self._world.rank} on {socket.gethostname()} failed in {phase}: {scrub(str(error))}"
        self._store.compare_set(FAILED, "", text)

    def _raise_failure(self, name: str, waited: float) -> None:
        if self._store.check([FAILED]):
            cause = self._store.get(FAILED).decode(errors="replace")
            raise RankError(
                f"rank {self._world.rank} waited {waited:.0f} s in {name} when {cause}",
                remedy="That rank's error.json and log have the cause.",
            )

    def _sleep(self, key: str, seconds: float) -> None:
        from torch.distributed import DistStoreError

        try:
            self._store.wait([key], timedelta(seconds=max(0.01, seconds)))
        except DistStoreError:
            return


def _key(name: str, use: int, rank: int) -> str:
    return f"wait/{name}/{use}/{rank}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
