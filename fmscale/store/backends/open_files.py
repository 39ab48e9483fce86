"""Open files of a directory store, kept for the next read of the same object.

On a network file system an open is a request to its metadata server; training would send a request for each unit.
A replaced or deleted file has no link left, and fstat shows that without a request. With a hard link made by another
program it still has a link, and ranges come from the replaced file; `get` always opens anew.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags to open an object; they refuse a symbolic link."""
LIMIT = 128
"""Files that a backend keeps open: far below the usual limit of a process, 1024."""


class OpenFile:
    """A descriptor that closes with its last reference, so never during a read."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, READING)

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", -1)
        if descriptor >= 0:
            os.close(descriptor)


class OpenFiles:
    """The files read last, by key; safe across threads."""

    def __init__(self, path_of: Callable[[str], str]) -> None:
        """Call `path_of` whenever a file is opened: it checks a key and gives its path."""
        self._path_of = path_of
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> OpenFile:
        """The object's open file; hold it during the read. Raises OSError, and the errors of `path_of`."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._files.move_to_end(key)
        if file is not None and os.fstat(file.descriptor).st_nlink:
            return file
        file = OpenFile(self._path_of(key))
        with self._lock:
            self._files[key] = file
            self._files.move_to_end(key)
            if len(self._files) > LIMIT:
                self._files.popitem(last=False)
        return file

    def forget(self, key: str) -> None:
        """Close the object's file after its last running read."""
        with self._lock:
            self._files.pop(key, None)
