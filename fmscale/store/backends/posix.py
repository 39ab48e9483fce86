"""Services of the operating system for a directory store: whole reads and writes, fsync, clear errors."""

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from fmscale.errors import AccessDenied, ObjectNotFound, StoreError, StoreFull
from fmscale.store.keys import missing, truncated

COPY_BYTES = 1 << 20
"""Block of put_file: the copy is bound by the disk, and eight threads copy at a time (84 MB of a writer with 8 MiB)."""


def read_full(descriptor: int, key: str, start: int, buffers: Sequence[memoryview]) -> int:
    """Fill `buffers` from byte `start` on; returns their length. Raises CorruptData if the file ends first."""
    length = sum(buffer.nbytes for buffer in buffers)
    done = os.preadv(descriptor, buffers, start) if length else 0
    while done < length:
        count = os.preadv(descriptor, _behind(buffers, done), start + done)
        if count == 0:
            raise truncated(key, start, length, done)
        done += count
    return length


def _behind(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """Rest of `buffers` after their first `done` bytes."""
    rest = []
    for buffer in buffers:
        view = buffer.cast("B")
        rest.append(view[min(done, len(view)) :])
        done = max(0, done - len(view))
    return rest


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all bytes: an unbuffered write may take only a part, as on a disk that is nearly full."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def pwrite_all(descriptor: int, data: memoryview, at: int) -> None:
    """Write all bytes to a file from its byte `at` on. Raises OSError, also when the disk is full."""
    while data:
        done = os.pwrite(descriptor, data, at)
        data, at = data[done:], at + done


def copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copy the rest of `source` to `target`."""
    while block := source.read(COPY_BYTES):
        write_all(target, block)


def sync_directory(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: str, durable: set[str]) -> None:
    """Create missing folders, each durable in its parent before anything is written below it. The nearest folder that
    another process made is synced too, unless it is among the `durable` of earlier calls: that process may not have
    come so far. The folders above were synced before it was made.
    """
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    if folder not in durable:
        with suppress(PermissionError):  # above the store's own folder this user may have no right to read
            sync_directory(os.path.dirname(folder))
        durable.add(folder)
    for path in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(path)
        sync_directory(os.path.dirname(path))
        durable.add(path)


def remove_unlocked(path: str) -> None:
    """Remove a file. Raises BlockingIOError if a process holds its lock."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


@contextmanager
def translated(key: str, *, writing: bool = False) -> Iterator[None]:
    """Raise errors of the operating system as store errors with their remedy."""
    try:
        yield
    except OSError as error:
        raise translation(error, key, writing=writing) from error


def translation(error: OSError, key: str, *, writing: bool = False) -> StoreError:
    """The store error for an error of the operating system."""
    where = f"{key} ({error.strerror})"
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        if not writing:
            return ObjectNotFound("no object under this key", found=key, remedy=missing(key))
        return StoreError(
            "a folder of this name is in the way, or a file where the key needs a folder",
            found=where,
            remedy="Choose another key; on a file system a name is a folder or an object, never both.",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            "the file system is full or the quota is used up",
            found=where,
            remedy="Free space or choose another store; nothing half-written was left behind.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return AccessDenied(
            "the file system does not allow this",
            found=where,
            remedy="Give this user the right, or remount it writable; from Python, a store that is only read can be "
            "opened with read_only=True.",
        )
    if error.errno == errno.ELOOP:
        return StoreError("a key must not be a symbolic link", found=where, remedy="Store the file itself.")
    return StoreError(
        "the file system failed", found=where, remedy="Check the disk and the mount (dmesg), then try again."
    )
