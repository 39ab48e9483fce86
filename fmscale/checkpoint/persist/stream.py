"""A file's bytes, added span by span from one memory; the header at the file's beginning is added last.

The owner of the file adds spans in order and receives complete blocks. The first block comes last, because its header
names all tensors of the file.
"""

from bisect import bisect_right
from collections.abc import Callable

from fmscale.checkpoint.format.layout import PAGE

BLOCK_BYTES = 8 << 20
"""Bytes that are written at once: a multiple of PAGE and of the chunk of a checksum."""

Block = tuple[int, int]
"""First byte in the file, and bytes."""


class Stream:
    """A stream of bytes. One thread may add while any number of threads read complete blocks."""

    def __init__(self, memory: memoryview, begin: int, header_bytes: int, most: int) -> None:
        """The header takes `header_bytes` (whole pages) of the memory from `begin` on. The memory and `begin` are
        aligned to pages. The file has at most `most` bytes.
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
        """Append bytes [offset, offset + size) of the memory, and return the blocks that they complete."""
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
        """End the stream with its header of exactly `header_bytes`, and return the remaining blocks."""
        self._memory[self._begin : self._begin + self.header_bytes] = header
        rest = [(self._next, self.nbytes - self._next)] if self.nbytes > self._next else []
        return [*rest, (0, min(BLOCK_BYTES, self.nbytes))]

    def block(self, start: int, size: int, scratch: Callable[[], memoryview]) -> memoryview:
        """Bytes [start, start + size) of a complete block: a view of the memory if a single span holds them and they
        begin at a page, else a copy at the beginning of `scratch()`.
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
        """All bytes of a closed stream: a view of the memory if they are one span, else a copy."""
        return self.block(0, self.nbytes, lambda: memoryview(bytearray(self.nbytes)))
