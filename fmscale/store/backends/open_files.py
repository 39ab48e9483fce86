"""Open files of a directory store, kept for the next read of the same object.

On a network file system an open is a request to its metadata server; training would make one for each unit it
reads. A file that was replaced or deleted has no link left, which fstat shows without a request (unless
somebody made a hard link of it: ranges then come from the replaced file; `get` always opens anew).
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags of opening an object: no key is a symbolic link."""
LIMIT = 128
"""Files kept open by one backend: far below the usual limit of 1024 of a process."""


class OpenFile:
    """A descriptor that is closed when nobody holds the object any more: never under a running read."""

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
        """`path_of` checks a key and gives its path; it is asked only when a file is opened."""
        self._path_of = path_of
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> OpenFile:
        """The object's file, open; hold it while reading. Raises what opening raises."""
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
        """Close the object's file once nobody reads it."""
        with self._lock:
            self._files.pop(key, None)
