"""Progress of the trainer's copy into a snapshot: the persist process writes the final bytes while the trainer
copies the rest.
"""

import sys
from threading import Condition

from fmscale.errors import FmscaleError

EVERYTHING = sys.maxsize
"""Number of bytes that stands for a complete copy."""


NEXT = "Training goes on, and the next save is a new attempt."
"""Remedy for a failed save whose reason has a remedy of its own or lies on another rank."""


class SaveFailed(FmscaleError):
    """A save that failed and is not tried again."""


class CopyProgress:
    """Number of bytes at the beginning of the snapshot's memory that are final."""

    def __init__(self, bytes: int = EVERYTHING) -> None:
        self._bytes = bytes
        self._failed = ""
        self._changed = Condition()

    def advance(self, bytes: int) -> None:
        """Raise the number of final bytes to `bytes`."""
        with self._changed:
            self._bytes = max(self._bytes, bytes)
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """End the copy with a reason; final bytes stay final."""
        with self._changed:
            self._failed = reason
            self._changed.notify_all()

    def wait(self, bytes: int) -> int:
        """Wait until `bytes` are final, and return the number of final bytes. Raises SaveFailed after a failed copy."""
        with self._changed:
            while self._bytes < bytes:
                if self._failed:
                    raise SaveFailed(self._failed, remedy=NEXT)
                self._changed.wait()
            return self._bytes
