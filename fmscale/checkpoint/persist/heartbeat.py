"""Signs of life of persist processes that finish their last save after their trainers have ended.

Each rank that drains writes a counter beside its files. A listener times changes of the counter by its own clock, so
clocks need not agree. Giving up is always safe: no rank has reported the save as durable.
"""

import time
from collections.abc import Callable, Sequence

from fmscale.checkpoint.format.names import alive_key
from fmscale.errors import ObjectNotFound, StoreError
from fmscale.store.backends.protocol import Backend

BEAT_SECONDS = 3.0
"""Seconds between two signs of life."""
SILENT_SECONDS = 15.0
"""Seconds without a sign of life after which a rank counts as gone."""


def beat(backend: Backend, folder: str, rank: int, number: int) -> None:
    """Show that this rank is at work on a save. Raises StoreError."""
    backend.put(alive_key(folder, rank), b"%d" % number)


class Listener:
    """Signs of life of a save's other ranks, as one process has seen them."""

    def __init__(self, backend: Backend, folder: str, alone: Callable[[], bool]) -> None:
        """`alone` returns True once this process's own trainer has ended; before that no rank counts as gone."""
        self._backend, self._folder, self._alone = backend, folder, alone
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._looked = 0.0

    def silent(self, ranks: Sequence[int]) -> list[int]:
        """Ranks among `ranks` that have given no sign of life for SILENT_SECONDS since this process was left alone."""
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
                counter = self._backend.get(alive_key(self._folder, rank))
            except ObjectNotFound:
                counter = b""
            except StoreError:  # a store that does not answer says nothing about the rank
                counter, known = b"", None
            if known is None or known[0] != counter:
                self._heard[rank] = (counter, now)
            elif now - known[1] >= SILENT_SECONDS:
                gone.append(rank)
        return gone
