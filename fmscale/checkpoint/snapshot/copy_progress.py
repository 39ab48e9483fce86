"""Progress of the trainer's copy into a snapshot: the persist process writes the bytes that are there while the rest
is still being copied.
"""

import sys
from threading import Condition

from fmscale.errors import FmscaleError

EVERYTHING = sys.maxsize
"""As far as any copy can come."""


NEXT = "Training goes on, and the next save is a new attempt."
"""Remedy where the reason for a failed save has its own, or is on another rank."""


class SaveFailed(FmscaleError):
    """A save that came to nothing, for good."""


class CopyProgress:
    """Bytes of the snapshot's memory, from its beginning on, that are final."""

    def __init__(self, bytes: int = EVERYTHING) -> None:
        self._bytes = bytes
        self._failed = ""
        self._changed = Condition()

    def advance(self, bytes: int) -> None:
        """So many are final now."""
        with self._changed:
            self._bytes = max(self._bytes, bytes)
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """No more will come; what is complete stays so."""
        with self._changed:
            self._failed = reason
            self._changed.notify_all()

    def wait(self, bytes: int) -> int:
        """Return once so many are final; how many are. Raises SaveFailed where they never will be."""
        with self._changed:
            while self._bytes < bytes:
                if self._failed:
                    raise SaveFailed(self._failed, remedy=NEXT)
                self._changed.wait()
            return self._bytes
