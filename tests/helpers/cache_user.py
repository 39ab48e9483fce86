"""A process that reads through a node cache, and the expected bytes of its reads.

    python -m tests.helpers.cache_user DIRECTORY LIMIT MODE

crowd     8 threads read all chunks of an object at once, each from a start of its own
hang      its fetch says "fetching" and never returns
churn     with SEED and COUNT: random reads from objects larger than the limit, every byte checked
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Lock

import numpy as np

from fmscale.store.segments.handle import ObjectRef
from fmscale.store.tiers.cache import NodeCache

CHUNK = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Ref(ObjectRef):
    """An object whose chunk i is filled with a byte that is never 0."""

    key: str = ""
    chunk_bytes: int = CHUNK
    crc32c: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))


@dataclass
class Source:
    """Source of the chunks; counts the requests."""

    ref: Ref
    calls: list[tuple[int, int]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def fetch(self, first: int, count: int, buffer: memoryview) -> None:
        with self.lock:
            self.calls.append((first, count))
        buffer[:] = content(self.ref, first, count)

    def fetched(self) -> Counter[int]:
        return Counter(chunk for first, count in self.calls for chunk in range(first, first + count))


def content(ref: Ref, first: int, count: int) -> bytes:
    """The bytes of chunks of an object."""
    salt = int(ref.digest[-2:], 16)
    whole = b"".join(bytes([(chunk * 7 + salt) % 255 + 1]) * ref.chunk_bytes for chunk in range(first, first + count))
    return whole[: ref.bytes - first * ref.chunk_bytes]


def used_bytes(cache: NodeCache) -> int:
    """Bytes of chunks in the cache, of all processes."""
    with cache._accounting() as usage:
        return usage[0]


def read(cache: NodeCache, source: Source, first: int, count: int, next_use: int = 0) -> None:
    """Read chunks and check them."""
    wanted = content(source.ref, first, count)
    buffer = bytearray(len(wanted))
    cache.read(source.ref, first, count, memoryview(buffer), source.fetch, next_use)
    assert buffer == wanted, f"chunks {first} to {first + count} are wrong"


def crowd(cache: NodeCache) -> None:
    """See the module."""
    source = Source(Ref(digest="c" * 32, bytes=64 * CHUNK))
    barrier = Barrier(8)

    def thread(start: int) -> None:
        barrier.wait()
        for i in range(0, 64, 4):
            read(cache, source, (start * 8 + i) % 64, 4)

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(thread, range(8)))
    print(json.dumps(source.fetched()), flush=True)


def hang(cache: NodeCache) -> None:
    """See the module."""

    def fetch(first: int, count: int, buffer: memoryview) -> None:
        buffer[:] = b"\1" * len(buffer)
        print("fetching", flush=True)
        sys.stdin.readline()

    cache.read(Ref(digest="d" * 32, bytes=8 * CHUNK), 0, 4, memoryview(bytearray(4 * CHUNK)), fetch, 0)


def churn(cache: NodeCache, seed: str, count: str) -> None:
    """See the module."""
    rng = random.Random(int(seed))
    sources = [Source(Ref(digest=f"{i:032x}", bytes=40 * CHUNK)) for i in range(4)]
    for number in range(int(count)):
        read(cache, rng.choice(sources), rng.randrange(36), rng.randrange(1, 5), number + rng.randrange(100))
    print(json.dumps(cache.requests.count), flush=True)


if __name__ == "__main__":
    directory, limit, mode, *rest = sys.argv[1:]
    modes: dict[str, Callable[..., None]] = {"crowd": crowd, "hang": hang, "churn": churn}
    modes[mode](NodeCache(Path(directory), int(limit)), *rest)
