"""A tier over a second store: it has copies of some chunks, other bytes in some, and lacks the rest."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.handle import ObjectRef

ABSENT, GOOD, BAD = 0, 1, 2


def copy_store(source: Backend, target: Backend, prefix: str = "") -> None:
    """Copy all objects below a prefix."""
    for info in source.list_objects(prefix):
        target.put(info.key, source.get(info.key))


@dataclass
class CopyTier:
    """A tier that copies chunks from a backend."""

    backend: Backend
    state: Callable[[str, int], int] = lambda key, chunk: GOOD
    """Takes a key and a chunk; gives ABSENT, GOOD or BAD."""
    owns: Callable[[str, int], bool] = lambda key, region: True
    error: Exception | None = None
    """Raised by every call, by `read` once the buffer is half full."""
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Key and number of every chunk that `read` was asked for."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of a chunk by key."""
    advised: list[tuple[int, int, int]] = field(default_factory=list)
    """First chunk, number of chunks and next use of every advice."""
    uses: set[int] = field(default_factory=set)
    """Next uses of all reads."""

    def read(
        self, ref: ObjectRef, first: int, chunks: int, buffer: memoryview, *, next_use: int, expected: np.ndarray
    ) -> np.ndarray:
        assert np.array_equal(expected, ref.crc32c[first : first + chunks])
        assert len(buffer) == min((first + chunks) * ref.chunk_bytes, ref.bytes) - first * ref.chunk_bytes
        self.asked += [(ref.key, chunk) for chunk in range(first, first + chunks)]
        self.sizes[ref.key] = ref.chunk_bytes
        self.uses.add(next_use)
        there = np.zeros(chunks, dtype=bool)
        for i in range(chunks):
            if self.error is not None and i >= chunks // 2:
                raise self.error
            part = buffer[i * ref.chunk_bytes : (i + 1) * ref.chunk_bytes]
            state = self.state(ref.key, first + i)
            there[i] = state != ABSENT
            if state == ABSENT:
                part[:] = bytes([0xEE]) * len(part)
                continue
            self.backend.read_into(ref.key, (first + i) * ref.chunk_bytes, part)
            part[-1] ^= state == BAD
        return there

    def advise(self, ref: ObjectRef, first: int, chunks: int, next_use: int) -> None:
        self.advised.append((first, chunks, next_use))
        if self.error is not None:
            raise self.error

    def keeps(self, ref: ObjectRef, region: int) -> bool:
        if self.error is not None:
            raise self.error
        return self.owns(ref.key, region)
