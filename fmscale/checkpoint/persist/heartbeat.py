"""Signs of life of persist processes that finish their last save after their trainers.

Each rank that drains writes a counter beside its files. Only changes of it count, by the listener's own clock: clocks
need not agree. To give up is always safe: nobody has been told that the save is durable.
"""

import time
from collections.abc import Callable, Sequence

from fmscale.checkpoint.format.names import alive_key
from fmscale.errors import ObjectNotFound, StoreError
from fmscale.store.backends.protocol import Backend

BEAT_SECONDS = 3.0
"""Between two signs of life."""
SILENT_SECONDS = 15.0
"""After which a rank counts as gone."""


def beat(backend: Backend, folder: str, rank: int, number: int) -> None:
    """Show that this rank is at work on a save. Raises StoreError."""
    backend.put(alive_key(folder, rank), b"%d" % number)


class Listener:
    """Signs of life that one process has heard of the other ranks of a save."""

    def __init__(self, backend: Backend, folder: str, alone: Callable[[], bool]) -> None:
        """`alone` says whether this process's own trainer is gone: until then nobody is given up."""
        self._backend, self._folder, self._alone = backend, folder, alone
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._looked = 0.0

    def silent(self, ranks: Sequence[int]) -> list[int]:
        """Those of `ranks` that have given no sign of life for SILENT_SECONDS since this process was left alone."""
        now = time.monotonic()
        if not self._alone():
            self._heard.clear()
            return []
        if now - self._looked < BEAT_SECONDS / 4:
            return []
        self._looked = now
        gone = []
        for rank in ranks:
            known = self._heard.get(rank)
            try:
                found = self._backend.get(alive_key(self._folder, rank))
            except ObjectNotFound:
                found = b""
            except StoreError:  # a store that does not answer says nothing about the rank
                found, known = b"", None
            if known is None or known[0] != found:
                self._heard[rank] = (found, now)
            elif now - known[1] >= SILENT_SECONDS:
                gone.append(rank)
        return gone
