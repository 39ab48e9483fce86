"""Protocol of every store: bytes under keys, with three implementations.

A key is a relative, slash-separated path below the store's URL. Data objects are write-once: nothing in
fmscale overwrites a key that a log entry references. `put_if_absent` is the only primitive that the
commit log needs (promise P3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np

from fmscale.errors import ObjectNotFound
from fmscale.store.keys import check_key


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One stored object as `head` and `list` report it."""

    key: str
    """Key relative to the store's URL."""
    bytes: int
    modified: float
    """Time of last modification, seconds since the epoch, by the store's clock."""
    etag: str = ""
    """The store's tag of the content, which changes with it; empty if there is none."""


@dataclass
class Requests:
    """Requests and bytes by kind, counted since the backend was opened; safe across threads."""

    count: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, kind: str, size: int = 0) -> None:
        """Count one request of `kind` (get, get_range, put, put_if_absent, head, list, delete)."""
        with self._lock:
            self.count[kind] = self.count.get(kind, 0) + 1
            self.bytes[kind] = self.bytes.get(kind, 0) + size


class Backend(Protocol):
    """Bytes under keys on one store.

    Every method raises `ObjectNotFound`, `AccessDenied`, `StoreFull`, `StoreUnavailable` (after retries,
    within the deadline) or another `StoreError`, never an exception of another library.
    """

    url: str
    """The store's URL for people, without credentials."""
    requests: Requests
    """Requests to the store so far."""

    def get(self, key: str) -> bytes:
        """The whole object."""

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        """Fill `buffers` in order with the object's bytes from `start` on, in one request.

        Raises CorruptData if the object ends before the buffers are full (a truncated object).
        """

    def read(self, key: str, start: int, length: int) -> memoryview:
        """The object's bytes [start, start + length), in the memory of the answer where a copy can be spared.

        Raises CorruptData if the object ends before.
        """
        data = memoryview(bytearray(length))
        self.read_into(key, start, data)
        return data

    def advise(self, key: str, start: int, length: int) -> None:
        """Start to read a range that will be needed soon, where this is free; no error for a missing object.

        Does nothing by default: on a remote store this request would cost as much as the read itself.
        """
        return

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store the object; durable when this returns. Replaces an object under this key."""

    def put_file(self, key: str, path: Path) -> None:
        """Store a local file of any size (multipart where needed); durable when this returns."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store the object unless the key exists. True if this call created the object: exactly one racing
        call gets True, and no reader sees a half-written object.

        False only if another call created the object. Raises StoreUnavailable if the answer was lost and this
        call may have created it: read the object back to find out.
        """

    def head(self, key: str) -> ObjectInfo:
        """Size and time of the object."""

    def exists(self, key: str) -> bool:
        """True if the store has the key."""
        try:
            self.head(key)
        except ObjectNotFound:
            return False
        return True

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix` (a whole path segment), in key order."""

    def list_names(self, prefix: str = "") -> list[str]:
        """Names directly below `prefix` (one level), sorted; folders and objects alike.

        A folder may still be named after its last object was deleted (SeaweedFS keeps it for a while).
        """

    def delete(self, key: str) -> None:
        """Remove the object; no error if it is gone already."""

    def local_path(self, key: str) -> Path | None:
        """Path of the object on this machine's file system; None, the default, for stores without files."""
        check_key(key)
        return None


def scatter(data: memoryview, buffers: Sequence[memoryview]) -> None:
    """Copy `data` into `buffers` in order; both have the same length."""
    at = 0
    for buffer in buffers:
        copy(data[at : at + buffer.nbytes], buffer.cast("B"))
        at += buffer.nbytes


def copy(data: memoryview, into: memoryview) -> None:
    """Copy bytes like `into[:] = data`, but without the interpreter's lock: a copy of 256 KiB into fresh memory may
    take 0.6 ms (a virtual machine's first touch), and all other threads would wait for it.
    """
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(data, np.uint8))


def find(backend: Backend, key: str) -> bytes | None:
    """The content of an object, or None if the store lacks it."""
    try:
        return backend.get(key)
    except ObjectNotFound:
        return None
