"""Locks on byte ranges of a file, between threads and processes; the kernel releases them when a holder dies.

Open-file-description locks (`F_OFD_SETLK`, Linux 3.15): unlike POSIX record locks they belong to one open(),
so that two threads of a process exclude each other too, provided that each opens the file itself.
"""

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

FIRST_PAUSE = 0.0002
LONGEST_PAUSE = 0.005
"""Longest pause, in seconds, between attempts on a held lock: a fetch takes 5 ms or more, so it adds little."""

PATIENCE = 2.0
"""Seconds to wait for a lock: 4 MiB arrive in this time at 2 MB/s, and a stopped process keeps its locks for ever."""

_held: set[int] = set()
_held_lock = threading.Lock()


def try_lock(descriptor: int, start: int, length: int, *, shared: bool = False) -> bool:
    """Lock bytes [start, start + length) for this open file description, or return False at once."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(kind, start, length))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, start: int, length: int) -> None:
    """Release bytes [start, start + length)."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, length))


def wait_lock(descriptor: int, start: int, length: int, patience: float, *, shared: bool = False) -> None:
    """Lock the range once it is free. Raises TimeoutError after `patience` seconds: a stopped process keeps
    its locks (a killed process loses them), and no other process may wait for ever.
    """
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE
    while not try_lock(descriptor, start, length, shared=shared):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "another process keeps a lock")
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


@contextmanager
def locked(path: str, start: int, length: int, patience: float) -> Iterator[int]:
    """Hold the range exclusively; gives the descriptor that holds it. Raises OSError, TimeoutError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with _held_lock:
        _held.add(descriptor)
    try:
        wait_lock(descriptor, start, length, patience)
        try:
            yield descriptor
        finally:
            unlock(descriptor, start, length)
    finally:
        with _held_lock:
            _held.discard(descriptor)
        os.close(descriptor)


class Locks:
    """Locks that a stopped process delays only once: while a lock is held that outlasted the patience, nothing waits
    for its file again, and a twentieth as long for other files. Safe across threads.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        """Seconds to wait for a lock."""
        self._stuck: dict[str, tuple[int, int]] = {}

    @contextmanager
    def hold(self, path: str, start: int, length: int) -> Iterator[int]:
        """`locked`, with the patience that is left."""
        for stuck, place in list(self._stuck.items()):
            if _is_free(stuck, *place):
                self._stuck.pop(stuck, None)
        patience = 0.0 if path in self._stuck else self.patience / (20 if self._stuck else 1)
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(locked(path, start, length, patience))
            except TimeoutError:
                self._stuck.setdefault(path, (start, length))
                raise
            yield descriptor


def _is_free(path: str, start: int, length: int) -> bool:
    """True if nobody holds a part of the range, or if the file is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        holder = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, start, length))
        return bool(struct.unpack_from("h", holder)[0] == fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _flock(kind: int, start: int, length: int) -> bytes:
    """struct flock of 64-bit Linux: type, whence, start, length, pid (0, as these locks demand)."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def _close_in_child() -> None:
    """Close the parent's lock files in a forked child: the child would keep the locks of a dead parent."""
    global _held_lock
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
    _held_lock = threading.Lock()


os.register_at_fork(after_in_child=_close_in_child)
