"""A file's bytes while they become known: a header that comes last, and spans of one memory that follow it.

The owner of the file adds spans in order; the writers take blocks as soon as they are complete. The first block has
the header with the names of all that follows, and is given out last.
"""

from bisect import bisect_right
from collections.abc import Callable
from threading import Condition

from fmscale.checkpoint.format.layout import PAGE

BLOCK_BYTES = 8 << 20
"""Bytes that are written at once: a multiple of the chunks that checksums are of, and of PAGE."""


class Stream:
    """Safe for one thread that adds and any number that take."""

    def __init__(self, memory: memoryview, begin: int, header_bytes: int, most: int) -> None:
        """The header's place is `header_bytes` (whole pages) from `begin` on, which is a page of the memory, as the
        memory's own beginning. The file has at most `most` bytes.
        """
        self.most = most
        self.nbytes = header_bytes
        self.header_bytes = header_bytes
        self._memory = memory
        self._begin = begin
        self._spans = [(begin, header_bytes)]
        self._starts = [0]
        self._next = BLOCK_BYTES
        self._first = True
        self._closed = False
        self._error: BaseException | None = None
        self._changed = Condition()

    @property
    def empty(self) -> bool:
        """True if nothing follows the header."""
        return self.nbytes == self.header_bytes

    def add(self, offset: int, size: int) -> None:
        """Bytes [offset, offset + size) of the memory come next. Raises what `fail` was given."""
        with self._changed:
            if self._error is not None:
                raise self._error
            begin, length = self._spans[-1]
            if begin + length == offset:
                self._spans[-1] = (begin, length + size)
            else:
                self._spans.append((offset, size))
                self._starts.append(self.nbytes)
            self.nbytes += size
            if self.nbytes >= self._next + BLOCK_BYTES:
                self._changed.notify_all()

    def close(self, header: bytes) -> None:
        """Nothing else comes; `header` has exactly `header_bytes`."""
        self._memory[self._begin : self._begin + self.header_bytes] = header
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End it: nothing is given out any more, and who adds gets the error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def take(self) -> tuple[int, int] | None:
        """(first byte, bytes) of a block that is complete and nobody else has taken; waits for one. None at the end."""
        with self._changed:
            while self._error is None:
                size = min(BLOCK_BYTES, self.nbytes - self._next)
                if size == BLOCK_BYTES or (self._closed and size > 0):
                    self._next += BLOCK_BYTES
                    return self._next - BLOCK_BYTES, size
                if self._closed:
                    first, self._first = self._first, False
                    return (0, min(BLOCK_BYTES, self.nbytes)) if first else None
                self._changed.wait()
            return None

    def block(self, start: int, size: int, scratch: Callable[[], memoryview]) -> memoryview:
        """Bytes [start, start + size), which have been added: the memory itself where one span has them all and
        they begin at a page, else a copy at the beginning of `scratch()`.
        """
        number = bisect_right(self._starts, start) - 1
        offset = start - self._starts[number]
        begin, length = self._spans[number]
        if offset + size <= length and (begin + offset) % PAGE == 0:
            return self._memory[begin + offset : begin + offset + size]
        target, done = scratch(), 0
        while done < size:
            begin, length = self._spans[number]
            part = self._memory[begin + offset : begin + min(length, offset + size - done)]
            target[done : done + part.nbytes] = part
            done += part.nbytes
            number, offset = number + 1, 0
        return target[:size]

    def whole(self) -> memoryview:
        """All bytes, once it is closed: the memory itself where they are one span."""
        return self.block(0, self.nbytes, lambda: memoryview(bytearray(self.nbytes)))
