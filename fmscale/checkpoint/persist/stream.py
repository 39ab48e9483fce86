"""A file's bytes while they become known: a header that comes last, and spans of one memory that follow it.

The owner of the file adds spans in order, and is given the blocks that are complete. The first block has the header
with the names of all that follows, and is given out last.
"""

from bisect import bisect_right
from collections.abc import Callable

from fmscale.checkpoint.format.layout import PAGE

BLOCK_BYTES = 8 << 20
"""Bytes that are written at once: a multiple of the chunks that checksums are of, and of PAGE."""

Block = tuple[int, int]
"""First byte in the file, and bytes."""


class Stream:
    """Safe for one thread that adds and any number that read blocks which are complete."""

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

    @property
    def empty(self) -> bool:
        """True if nothing follows the header."""
        return self.nbytes == self.header_bytes

    def add(self, offset: int, size: int) -> list[Block]:
        """Bytes [offset, offset + size) of the memory come next; the blocks that are complete with them."""
        begin, length = self._spans[-1]
        if begin + length == offset:
            self._spans[-1] = (begin, length + size)
        else:
            self._spans.append((offset, size))
            self._starts.append(self.nbytes)
        self.nbytes += size
        complete = [(start, BLOCK_BYTES) for start in range(self._next, self.nbytes - BLOCK_BYTES + 1, BLOCK_BYTES)]
        self._next += BLOCK_BYTES * len(complete)
        return complete

    def close(self, header: bytes) -> list[Block]:
        """Nothing else comes; `header` has exactly `header_bytes`. The blocks that are left."""
        self._memory[self._begin : self._begin + self.header_bytes] = header
        rest = [(self._next, self.nbytes - self._next)] if self.nbytes > self._next else []
        return [*rest, (0, min(BLOCK_BYTES, self.nbytes))]

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
