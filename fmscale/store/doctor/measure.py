"""Latency and throughput of a backend by kind of request."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from fmscale.errors import StoreError
from fmscale.store.backends.protocol import Backend

SMALL_BYTES = 4 << 10
"""About the size of a log entry or a seal."""
RANGE_BYTES = 256 << 10
"""About the size of the unit that the shuffle moves."""
LARGE_BYTES = 16 << 20
"""Size at which throughput decides, not latency."""
STREAMS = 8
"""Concurrent transfers of large objects."""
RANGE_STREAMS = 16
"""Concurrent reads of ranges, as in a prefetch."""
SAMPLES = 100
"""Most requests of one kind; fewer if the time ends first."""
LARGE_PUTS = (4, 2 * STREAMS)
"""Large objects to write: one after another, and at the same time."""
ROOM = 8
"""All large objects take at most 1/ROOM of a disk's free bytes: other programs use the rest meanwhile."""

Kind = tuple[str, int, int, Callable[[int], object], int]
"""A kind of request: operation, bytes, streams, the call (it gets its number), the limit of calls."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One kind of request, repeated."""

    operation: str
    bytes: int
    """Size of one request; 0 where no bytes are moved."""
    streams: int
    """Requests under way at the same time."""
    requests: int
    p50_ms: float
    """Median time of a request in milliseconds."""
    p99_ms: float
    """99th percentile in milliseconds (the slowest, below 100 requests)."""
    megabytes_per_second: float | None
    """All streams together, 10^6 bytes a second; None where no bytes are moved."""


def measure_written(backend: Backend, seconds: float, progress: Callable[[str], None]) -> list[Measurement]:
    """Writes and reads of new objects, up to `seconds` for each kind; the objects are removed again."""
    folder = f"fmscale-doctor/{uuid.uuid4().hex}"
    small, large = os.urandom(SMALL_BYTES), os.urandom(_large_bytes(backend))
    written: set[str] = set()

    def fresh(number: int) -> str:
        key = f"{folder}/{number}-{uuid.uuid4().hex[:8]}"
        written.add(key)
        return key

    in_turn, at_once = LARGE_PUTS
    writes: list[Kind] = [
        ("put", SMALL_BYTES, 1, lambda n: backend.put(fresh(n), small), SAMPLES),
        ("put_if_absent", SMALL_BYTES, 1, lambda n: backend.put_if_absent(fresh(n), small), SAMPLES),
        ("put", len(large), 1, lambda n: backend.put(fresh(n), large), in_turn),
        ("put", len(large), STREAMS, lambda n: backend.put(fresh(n), large), at_once),
    ]
    try:
        measurements = [_measure(kind, seconds, progress) for kind in writes]
        keys = [fresh(0)]
        backend.put(keys[0], large)
        keys += [key for key in sorted(written) if key not in keys and backend.head(key).bytes == len(large)]
        measurements += [_measure(kind, seconds, progress) for kind in _reads(backend, keys, len(large))]
    except StoreError:
        with suppress(StoreError):  # the first error is the cause to report
            _remove(backend, written)
        raise
    _remove(backend, written)
    return measurements


def _remove(backend: Backend, keys: Iterable[str]) -> None:
    for key in keys:
        backend.delete(key)


def _large_bytes(backend: Backend) -> int:
    """Size of a large object: LARGE_BYTES, or less on a small disk."""
    path = backend.local_path("fmscale.json")
    if path is None:
        return LARGE_BYTES
    share = shutil.disk_usage(path.parent).free // ROOM // (sum(LARGE_PUTS) + 1)
    return max(SMALL_BYTES, min(LARGE_BYTES, share))


def measure_existing(backend: Backend, seconds: float, progress: Callable[[str], None]) -> list[Measurement]:
    """Reads of the largest of the first thousand objects; an empty list if there is nothing to read."""
    first = list(islice(backend.list_objects(), 1000))
    size = max((info.bytes for info in first), default=0)
    keys = [info.key for info in first if info.bytes == size]
    return [_measure(kind, seconds, progress) for kind in _reads(backend, keys, size)] if size else []


def _reads(backend: Backend, keys: list[str], size: int) -> list[Kind]:
    """Reads of `keys` in turn, all of them `size` bytes long."""

    def read(length: int) -> Callable[[int], None]:
        places = max(size // length, 1)

        def request(number: int) -> None:
            key = keys[number % len(keys)]
            # 7919 is prime: successive reads lie apart, so that no read-ahead serves them.
            start = number * 7919 % places * length
            _uncache(backend, key, start, length)
            backend.read_into(key, start, memoryview(bytearray(length)))

        return request

    small, part, whole = min(SMALL_BYTES, size), min(RANGE_BYTES, size), min(LARGE_BYTES, size)
    return [
        ("head", 0, 1, lambda number: backend.head(keys[number % len(keys)]), SAMPLES),
        ("list", 0, 1, lambda _: backend.list_names(), 10),
        ("get", small, 1, read(small), SAMPLES),
        ("range", part, 1, read(part), SAMPLES),
        ("range", part, RANGE_STREAMS, read(part), 4 * SAMPLES),
        ("get", whole, 1, read(whole), 10),
        ("get", whole, STREAMS, read(whole), 4 * STREAMS),
    ]


def _uncache(backend: Backend, key: str, start: int, length: int) -> None:
    """Have the kernel drop clean pages of a local file, so that the disk and not the memory is measured."""
    path = backend.local_path(key)
    if path is not None:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _measure(kind: Kind, seconds: float, progress: Callable[[str], None]) -> Measurement:
    """Repeat the call until the kind's limit or the end of the time, but at least once a stream."""
    name, size, streams, call, limit = kind
    progress(f"{name} x{streams}")
    begin = time.perf_counter()

    def stream(first: int) -> list[float]:
        took = []
        for number in range(first, limit, streams):
            start = time.perf_counter()
            call(number)
            took.append(time.perf_counter() - start)
            if time.perf_counter() - begin > seconds:
                break
        return took

    with ThreadPoolExecutor(streams) as pool:
        times = sorted(t for part in pool.map(stream, range(streams)) for t in part)
    wall = time.perf_counter() - begin
    return Measurement(
        operation=name,
        bytes=size,
        streams=streams,
        requests=len(times),
        p50_ms=1e3 * times[len(times) // 2],
        p99_ms=1e3 * times[min(len(times) * 99 // 100, len(times) - 1)],
        megabytes_per_second=len(times) * size / wall / 1e6 if size else None,
    )
