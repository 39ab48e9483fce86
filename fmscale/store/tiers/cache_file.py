"""One object's copy in the node cache: a sparse file with a state per chunk in front of the chunks.

Layout, little-endian: 64 bytes of header (magic, generation, bytes, bytes per chunk), one state byte per
chunk, one word per chunk (16 bits session, 48 bits next use); the object's bytes from the next page on.

A reader takes no lock. A process that removes a chunk first clears its state, then raises the generation, then
frees the blocks; a process that adds a chunk writes the bytes first and the state last. A reader looks at the
generation and the states, reads, and looks at the generation again: if it is the same, no block was freed in
between, so the bytes are data and not a hole. Nothing is mapped: a full disk or a file that another program cuts
then raises an error and not a SIGBUS.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fmscale.store.backends.posix import pwrite_all

MAGIC = b"fmcache1"
HEADER = struct.Struct("<8sQQQ")
HEADER_BYTES = 64
GENERATION = slice(8, 16)
HEAD_BYTES = 16
"""Magic and generation."""
PAGE = 4096

ABSENT, PRESENT, RESERVED = 0, 1, 2
"""RESERVED: the chunk is counted, and a writer holds its lock; if the lock is free, the writer is dead."""

NEXT_USE_BITS = 48
NEVER = (1 << NEXT_USE_BITS) - 1

_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """Offsets in a cache file."""

    bytes: int
    chunk_bytes: int
    """Bytes per chunk; the last chunk may be short."""

    @property
    def chunks(self) -> int:
        return -(-self.bytes // self.chunk_bytes)

    @property
    def words(self) -> int:
        """Offset of the words."""
        return -(-(HEADER_BYTES + self.chunks) // 8) * 8

    @property
    def data(self) -> int:
        """Offset of the object's bytes."""
        return -(-(self.words + 8 * self.chunks) // PAGE) * PAGE

    @property
    def total(self) -> int:
        """Length of the file."""
        return self.data + self.chunks * self.chunk_bytes


class DamagedFile(OSError):
    """A cache file of another form, or one that was cut, overwritten or replaced."""


class CacheFile:
    """An open cache file. Writing its states needs the locks that `cache` takes; reading needs none."""

    def __init__(self, path: str, layout: CacheLayout | None = None) -> None:
        """Open the file. Raises OSError for a missing file, DamagedFile for a file of another form or, with
        `layout`, of another object.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        header = os.pread(self._descriptor, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES or header[:8] != MAGIC:
            raise self._gone()
        _, _, size, chunk_bytes = HEADER.unpack(header[: HEADER.size])
        if chunk_bytes == 0:
            raise self._gone()
        self.layout = CacheLayout(bytes=size, chunk_bytes=chunk_bytes)
        if layout not in (None, self.layout) or os.fstat(self._descriptor).st_size != self.layout.total:
            raise self._gone()
        self._words, self._data = self.layout.words, self.layout.data
        self._chunk_bytes = chunk_bytes

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def read(self, first: int, chunks: int, parts: Sequence[memoryview], *, locked: bool = False) -> bool:
        """Fill `parts` in order with chunks; False, with undefined bytes in them, unless all chunks stayed in the file.

        With `locked` the caller holds the chunks' lock, so that a removal of other chunks does not matter. Raises
        OSError, as all methods do, for a file whose header was overwritten or cut off.
        """
        low, high = HEADER_BYTES + first, HEADER_BYTES + first + chunks
        if high <= PAGE:  # one read of a page costs less than two
            before = os.pread(self._descriptor, high, 0)
            present = before.count(PRESENT, low, high)
        else:
            before = os.pread(self._descriptor, HEAD_BYTES, 0)
            present = os.pread(self._descriptor, chunks, low).count(PRESENT)
        if not before.startswith(MAGIC):
            raise self._gone()
        if present != chunks:
            return False
        got = os.preadv(self._descriptor, parts, self._data + first * self._chunk_bytes)
        whole = got == sum(part.nbytes for part in parts)
        return whole and (locked or os.pread(self._descriptor, HEAD_BYTES, 0) == before[:HEAD_BYTES])

    def holds(self, first: int, chunks: int) -> bool:
        """True if the file holds all of the chunks now."""
        return os.pread(self._descriptor, chunks, HEADER_BYTES + first).count(PRESENT) == chunks

    def use(self, first: int, chunks: int, word: int) -> None:
        """Write the chunks' words."""
        os.pwrite(self._descriptor, word.to_bytes(8, "little") * chunks, self._words + 8 * first)

    def runs(self, first: int, chunks: int) -> list[tuple[int, int, bool]]:
        """The range cut into runs (first, count, present)."""
        present = np.frombuffer(self.states(), np.uint8)[first : first + chunks] == PRESENT
        edges = [0, *(np.flatnonzero(np.diff(present)) + 1).tolist(), len(present)]
        return [(first + a, b - a, bool(present[a])) for a, b in pairwise(edges)]

    def states(self) -> bytes:
        """State of every chunk."""
        return self._whole(self.layout.chunks, HEADER_BYTES)

    def used(self) -> int:
        """Bytes of the chunks that are present or reserved."""
        return (self.layout.chunks - self.states().count(ABSENT)) * self.layout.chunk_bytes

    def uses(self) -> np.ndarray:
        """Word of every chunk, uint64."""
        return np.frombuffer(self._whole(8 * self.layout.chunks, self._words), np.uint64)

    def mark(self, first: int, chunks: int, state: int) -> None:
        """Write the states of a run."""
        os.pwrite(self._descriptor, bytes([state]) * chunks, HEADER_BYTES + first)

    def write(self, first: int, data: memoryview) -> None:
        """Write the bytes of chunks from `first` on. Raises OSError, also when the disk is full."""
        pwrite_all(self._descriptor, data, self._data + first * self._chunk_bytes)

    def take_away(self, first: int, chunks: int) -> None:
        """Clear a run's states, then free its blocks, so that no reader takes the hole for data.

        Raises OSError (EOPNOTSUPP where the file system cannot punch holes) with the states cleared.
        """
        self.mark(first, chunks, ABSENT)
        generation = (int.from_bytes(self._head()[GENERATION], "little") + 1) % 2**64
        os.pwrite(self._descriptor, generation.to_bytes(8, "little"), GENERATION.start)
        start = self._data + first * self._chunk_bytes
        punch_hole(self._descriptor, start, chunks * self._chunk_bytes)

    def check(self) -> None:
        """Raise OSError for a file that was cut or replaced since it was opened."""
        status = os.fstat(self._descriptor)
        if status.st_size != self.layout.total or not status.st_nlink:
            raise self._gone()
        self._head()

    def _head(self) -> bytes:
        head = self._whole(HEAD_BYTES, 0)
        if head[:8] != MAGIC:
            raise self._gone()
        return head

    def _whole(self, size: int, start: int) -> bytes:
        data = os.pread(self._descriptor, size, start)
        if len(data) < size:
            raise self._gone()
        return data

    def _gone(self) -> OSError:
        return DamagedFile(errno.ESTALE, "a file of the cache was cut, overwritten or replaced", self.path)

    def truncate(self) -> None:
        """Free all blocks of an object without chunks, if the file system cannot punch holes."""
        os.ftruncate(self._descriptor, self._data)
        os.ftruncate(self._descriptor, self.layout.total)

    def blocks(self) -> int:
        """Bytes that the file takes on disk."""
        return os.fstat(self._descriptor).st_blocks * 512


def create(path: str, layout: CacheLayout) -> None:
    """Make an empty cache file. Raises OSError. CacheFile refuses a half-made file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb", buffering=0) as file:
        file.truncate(layout.total)
        file.write(HEADER.pack(MAGIC, 0, layout.bytes, layout.chunk_bytes))


def punch_hole(descriptor: int, start: int, length: int) -> None:
    """Free a range's blocks. Raises OSError."""
    arguments = (ctypes.c_int(descriptor), ctypes.c_int(_PUNCH_HOLE))
    if _libc.fallocate64(*arguments, ctypes.c_int64(start), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def cannot_punch(error: OSError) -> bool:
    """True if the file system has no holes; False for any other error."""
    return error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def consecutive(chunks: np.ndarray) -> list[tuple[int, int]]:
    """Runs (first, count) of sorted chunk numbers."""
    parts = np.split(chunks, np.flatnonzero(np.diff(chunks) != 1) + 1)
    return [(int(part[0]), len(part)) for part in parts if len(part)]
