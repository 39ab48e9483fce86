"""A local file of metrics or delivery records. It grows by whole records, and a run goes on if it is lost."""

import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_BYTES = 16 << 20
"""Bytes of records that wait in memory for room on the disk, hours of a run; then the oldest are lost."""


class RecordFile:
    """Appends whole records, and keeps them in memory while the disk refuses them. No OSError is raised: the first is
    logged, and `lost` counts lost records. A partly written record is cut off before the next record is written.
    """

    def __init__(self, path: Path, *, begin: bytes = b"", lines: bool = False) -> None:
        """Continue a file of `lines` after its last whole line; empty any other. `begin`: first bytes if empty."""
        self.lost = 0
        self._path, self._begin, self._lines = path, begin, lines
        self._descriptor: int | None = None
        self._end = 0
        self._pending: deque[bytes] = deque()
        self._told = False
        self._write_pending()

    def append(self, record: bytes) -> None:
        """Add a record: on return the operating system has it, or it waits in memory if the disk refuses it."""
        self._pending.append(record)
        self._write_pending()
        while sum(map(len, self._pending)) > KEPT_BYTES:
            self._pending.popleft()
            self.lost += 1

    def close(self, end: bytes = b"") -> None:
        """Append `end`, and make the file durable."""
        if end:
            self._pending.append(end)
        self._write_pending()
        self.lost += len(self._pending) - bool(end and self._pending)
        self._pending.clear()
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._tell(error)
            self._release()
        if self.lost:
            logger.warning("%s lacks %d records", self._path, self.lost)

    def _write_pending(self) -> None:
        try:
            if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(0, "it was deleted")
            if self._descriptor is None:
                self._descriptor = self._open()
            while self._pending:
                self._write(self._descriptor, self._pending[0])
                self._pending.popleft()
        except OSError as error:
            self._tell(error)
            # Half a record is cut off at once, as the file may never be opened again.
            if self._descriptor is not None:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._end)
            self._release()

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            whole = _last_line(descriptor, size) if self._lines else self._end
            self._end = whole if whole <= size else 0
            os.ftruncate(descriptor, self._end)
            if not self._end:
                self._write(descriptor, self._begin)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _write(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        self._end += len(data)

    def _release(self) -> None:
        """Close the file; the next opening cuts off a partly written record."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "%s is not written: %s. The run goes on; what can be is written later.", self._path, error.strerror
            )


def _last_line(descriptor: int, end: int) -> int:
    """End of the last whole line in the first `end` bytes."""
    while end:
        begin = max(0, end - 4096)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
