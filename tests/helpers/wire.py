"""A stored segment of a few chunks, and a connection to it that records reads and flips bits."""

import threading
from dataclasses import dataclass, field

from fmscale.store.segments.handle import ObjectRef
from fmscale.store.segments.tokens_writer import TOKEN_CHUNK_BYTES
from fmscale.store.tiers.fetch import Fetcher, chunk_span
from tests.helpers.faulty_backend import FaultyBackend

CHUNKS, CHUNK = 6, TOKEN_CHUNK_BYTES
ROOMY = 1 << 30


@dataclass
class Wire(FaultyBackend):
    """A connection that flips a bit in reads: once for each listed offset, at the chunk's beginning."""

    flips: list[int] = field(default_factory=list)
    """Byte offsets in the object; a read that covers one takes it off the list."""
    reads: list[tuple[int, int]] = field(default_factory=list)
    """(start, bytes) of each read."""
    keys: list[str] = field(default_factory=list)
    """Key of each read."""
    guard: threading.Lock = field(default_factory=threading.Lock)

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        super().read_into(key, start, *buffers)
        with self.guard:
            self.reads.append((start, sum(buffer.nbytes for buffer in buffers)))
            self.keys.append(key)
            for buffer in buffers:
                hit = {at for at in self.flips if start <= at < start + buffer.nbytes}
                for at in hit:
                    self.flips.remove(at)
                    buffer[at - start] ^= 1
                start += buffer.nbytes

    def ranges(self) -> list[tuple[str, tuple[int, int]]]:
        """Key and (start, bytes) of each read."""
        return list(zip(self.keys, self.reads, strict=True))


def read(fetcher: Fetcher, ref: ObjectRef, first: int, chunks: int) -> bytes:
    _, length = chunk_span(ref, first, chunks)
    buffer = bytearray(b"\xa5" * length)
    fetcher.read_chunks(ref, first, chunks, memoryview(buffer))
    return bytes(buffer)


def part(ref: ObjectRef, data: bytes, first: int, chunks: int) -> bytes:
    return data[first * ref.chunk_bytes : (first + chunks) * ref.chunk_bytes]
