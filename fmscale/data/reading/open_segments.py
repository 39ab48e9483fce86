"""Open segments of a view, the least recently used dropped where their handles exceed a bound; and their arrays."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from fmscale.data.views.placement import Placement
from fmscale.errors import CorruptData, ObjectNotFound
from fmscale.store.segments.handle import Segment, by_shard
from fmscale.store.tiers.fetch import CorruptChunk, Fetcher

HANDLE_BYTES = 64 * 2**20
"""Bytes of open handles: 8 bytes a chunk of 16 KiB of tokens are 64 MB for 4,096 segments of 32 MB."""

Opened = TypeVar("Opened", bound=Segment)


class OpenSegments(Generic[Opened]):
    """Segments by commit and index; used from many threads."""

    def __init__(
        self, placement: Placement, opener: Callable[[str, str], Opened], held: Callable[[Opened], int]
    ) -> None:
        """`opener` takes prefix and digest of the seal; `held` gives the bytes that a handle holds."""
        self._placement = placement
        self._opener = opener
        self._held = held
        self._segments: OrderedDict[tuple[int, int], Opened] = OrderedDict()
        self._bytes = 0
        self._opening: dict[tuple[int, int], threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, commit: int, index: int) -> Opened:
        """The segment. Raises CorruptChunk if its seal or checksums are damaged or missing."""
        key = (commit, index)
        with self._lock:
            segment = self._segments.get(key)
            if segment is not None:
                self._segments.move_to_end(key)
                return segment
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # one thread opens the segment for all threads
            with self._lock:
                segment = self._segments.get(key)
            if segment is None:
                segment = self._open(commit, index)
                with self._lock:
                    self._opening.pop(key, None)
                    self._segments[key] = segment
                    self._bytes += self._held(segment)
                    while self._bytes > HANDLE_BYTES and len(self._segments) > 1:
                        self._bytes -= self._held(self._segments.popitem(last=False)[1])
        return segment

    def _open(self, commit: int, index: int) -> Opened:
        prefix, seal = self._placement.manifest(commit).segment(index)
        try:
            return self._opener(prefix, seal)
        except (CorruptData, ObjectNotFound) as error:
            raise CorruptChunk(f"{prefix}/seal.json", 0, error.cause) from error


def read_rows(fetcher: Fetcher, segment: Segment, name: str, start: int, count: int) -> np.ndarray:
    """Rows [start, start + count) of an array of the segment, verified."""
    layout = segment.arrays[name].layout
    out = np.empty((count, *layout.shape[1:]), dtype=layout.dtype)
    for ref, low, part in by_shard(segment, name, start, count):
        fetcher.read(ref, low * layout.row_bytes, out[part].data.cast("B"))
    return out
