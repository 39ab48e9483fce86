"""Reads one unit of a view: its tokens, verified, into host memory, and where its documents end.

A unit is b consecutive rows; masks and segment ends cut it into pieces that lie in one segment each.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fmscale.data.batch import UnitDocuments
from fmscale.data.views.placement import Placement, TokenSpan
from fmscale.errors import CorruptData, ObjectNotFound
from fmscale.store.segments.array import ArrayLayout
from fmscale.store.segments.tokens import ObjectRef, TokenSegment, open_segment
from fmscale.store.tiers.fetch import CorruptChunk, Fetcher

MAX_SEGMENTS = 4096
"""Open segment handles kept: 8 bytes per 16 KiB chunk each, 64 MB for segments of 32 MB."""
WHOLE_DOCUMENT_BYTES = 64 * 2**20
"""Views on a remote store whose document arrays are smaller than this keep them in memory, instead of reading the few
entries that each unit needs: two requests fewer per unit.
"""
WHOLE_DOCUMENT_BYTES_LOCAL = 2**18
"""The same for a local store, where the page cache keeps them for all ranks of a node: with 1.3 million documents each
rank held 8 MB more.
"""


class UnitRead(NamedTuple):
    """What came of reading a unit."""

    documents: UnitDocuments
    """Where its documents end."""
    damaged: list[tuple[int, int, CorruptChunk]]
    """Token ranges of the unit (first, stop) that no source can serve; zeros in memory."""


Lost = Callable[[int, int, CorruptChunk], None]
"""Told of rows [first, stop) that no source can serve, and why."""


@dataclass(slots=True)
class _Documents:
    ends: list[np.ndarray]
    ids: list[np.ndarray]
    offset: int | None = None


class UnitReader:
    """Reads units of one view; used from many threads."""

    def __init__(self, layout: Placement, fetcher: Fetcher, *, document_ids: bool = False) -> None:
        """`document_ids`: read the documents' stable ids too."""
        self.layout = layout
        self.view = layout.view
        self.fetcher = fetcher
        self.document_ids = document_ids
        self._segments: OrderedDict[tuple[int, int], TokenSegment] = OrderedDict()
        self._opening: dict[tuple[int, int], threading.Lock] = {}
        self._lock = threading.Lock()
        total = sum(manifest.documents for manifest in layout.manifests if manifest is not None)
        local = fetcher.backend.local_path("local") is not None
        most = WHOLE_DOCUMENT_BYTES_LOCAL if local else WHOLE_DOCUMENT_BYTES
        self._whole: dict[tuple[str, str], np.ndarray] | None = (
            {} if total * (24 if document_ids else 8) <= most else None
        )

    def read(self, unit: int, into: np.ndarray, next_use: int = 0) -> UnitRead:
        """Read unit `unit` into the beginning of `into` (tokens of the view's dtype).

        Raises StoreUnavailable, AccessDenied or another StoreError if the store does not serve at all.
        """
        commit, pieces = self.layout.pieces(unit)
        found = _Documents([], [])
        damaged: list[tuple[int, int, CorruptChunk]] = []
        at = 0
        for piece in pieces:
            stop = at + piece.count
            try:
                segment = self._segment(commit, piece.segment)
                self._read_tokens(segment, piece, into[at:stop], at, damaged, next_use)
                self._read_documents(segment, piece, at, found)
            except CorruptChunk as error:
                # Its seal or its document arrays: no row of the piece can be trusted.
                damaged.append((at, stop, error))
                found.ends.append(np.array([stop], dtype=np.int64))
                found.ids.append(np.zeros((1, 2), dtype=np.uint64))
            at = stop
        documents = UnitDocuments(
            ends=_joined(found.ends),
            offset=found.offset or 0,
            ids=_joined(found.ids) if self.document_ids else None,
        )
        return UnitRead(documents, damaged)

    def advise(self, unit: int, next_use: int = 0) -> None:
        """Prepare for the unit being read soon. What is damaged says so when it is read."""
        commit, pieces = self.layout.pieces(unit)
        for piece in pieces:
            with suppress(CorruptChunk):
                segment = self._segment(commit, piece.segment)
                layout = segment.arrays["tokens"].layout
                first, last = piece.start // layout.shard, (piece.start + piece.count - 1) // layout.shard
                for number in range(first, last + 1):
                    low = max(piece.start - number * layout.shard, 0)
                    high = min(piece.start + piece.count - number * layout.shard, layout.shard)
                    ref = segment.array_shard("tokens", number)
                    self.fetcher.advise(ref, low * layout.row_bytes, (high - low) * layout.row_bytes, next_use)

    def _segment(self, commit: int, index: int) -> TokenSegment:
        key = (commit, index)
        with self._lock:
            segment = self._segments.get(key)
            if segment is not None:
                self._segments.move_to_end(key)
                return segment
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # one thread opens it, for all
            with self._lock:
                segment = self._segments.get(key)
            if segment is None:
                segment = self._open_segment(commit, index)
                if self._whole is None:
                    self._announce_documents(segment)
                with self._lock:
                    self._opening.pop(key, None)
                    self._segments[key] = segment
                    if len(self._segments) > MAX_SEGMENTS:
                        self._segments.popitem(last=False)
        return segment

    def _open_segment(self, commit: int, index: int) -> TokenSegment:
        manifest = self.layout.manifests[commit]
        assert manifest is not None
        prefix, seal = manifest.segment(index)
        try:
            return open_segment(self.fetcher.backend, prefix, seal)
        except (CorruptData, ObjectNotFound) as error:
            raise CorruptChunk(f"{prefix}/seal.json", 0, error.cause) from error

    def _announce_documents(self, segment: TokenSegment) -> None:
        """Tell a disk of the document arrays, of which each unit will ask for a few KiB: one read instead of many."""
        for name in ("document_ends", "document_ids") if self.document_ids else ("document_ends",):
            for number in range(len(segment.arrays[name].shards)):
                ref = segment.array_shard(name, number)
                self.fetcher.backend.advise(ref.key, 0, ref.bytes)

    def _read_tokens(
        self,
        segment: TokenSegment,
        piece: TokenSpan,
        out: np.ndarray,
        at: int,
        damaged: list[tuple[int, int, CorruptChunk]],
        next_use: int,
    ) -> None:
        def lost(start: int, stop: int, error: CorruptChunk) -> None:
            out[start:stop] = 0
            damaged.append((at + start, at + stop, error))

        self._read_rows(segment, "tokens", piece.start, piece.count, out, next_use, lost)

    def _read_rows(
        self,
        segment: TokenSegment,
        name: str,
        start: int,
        count: int,
        out: np.ndarray,
        next_use: int = 0,
        lost: Lost | None = None,
    ) -> None:
        """Rows [start, start + count) of an array of the segment into `out`.

        `lost(first, stop, error)` is told of rows of `out` that no source can serve; without it the error
        is raised.
        """
        layout = segment.arrays[name].layout
        position = start
        while position < start + count:
            number, low = divmod(position, layout.shard)
            high = min(start + count - number * layout.shard, layout.shard)
            ref = segment.array_shard(name, number)
            rows = out[position - start :][: high - low]
            try:
                self._copy(ref, layout, low, high, rows, next_use)
            except CorruptChunk:
                if lost is None:
                    raise
                self._salvage(ref, layout, low, high, rows, position - start, lost)
            position += high - low

    def _copy(self, ref: ObjectRef, layout: ArrayLayout, low: int, high: int, out: np.ndarray, next_use: int) -> None:
        """Rows [low, high) of a shard into `out`."""
        self.fetcher.read(ref, low * layout.row_bytes, out.data.cast("B"), next_use)

    def _salvage(
        self, ref: ObjectRef, layout: ArrayLayout, low: int, high: int, out: np.ndarray, at: int, lost: Lost
    ) -> None:
        """As `_copy`, chunk by chunk, telling `lost` of those that cannot be served."""
        for chunk in range(low // layout.inner, -(-high // layout.inner)):
            start, stop = max(low, chunk * layout.inner), min(high, (chunk + 1) * layout.inner)
            try:
                self._copy(ref, layout, start, stop, out[start - low : stop - low], 0)
            except CorruptChunk as error:
                lost(at + start - low, at + stop - low, error)

    def _read_documents(self, segment: TokenSegment, piece: TokenSpan, at: int, found: _Documents) -> None:
        """Ends of the documents in the piece, in the unit's positions; of the last one, the piece's end."""
        stop = piece.start + piece.count
        inner = segment.arrays["tokens"].layout.inner
        low = int(segment.first_document[piece.start // inner])
        after = (stop - 1) // inner + 1
        high = segment.documents
        if after < len(segment.first_document):
            high = min(high, int(segment.first_document[after]) + 1)
        before = max(low - 1, 0)
        ends = self._document_rows(segment, "document_ends", before, high - before).astype(np.int64)
        first = int(ends.searchsorted(piece.start, side="right"))
        last = int(ends.searchsorted(stop, side="left"))
        if found.offset is None:
            found.offset = piece.start - (int(ends[first - 1]) if first else 0)
        # Both are read before either is kept: what cannot be read must not leave ends without ids.
        if self.document_ids:
            found.ids.append(self._document_rows(segment, "document_ids", before + first, last - first + 1).copy())
        inside = ends[first : last + 1] - (piece.start - at)
        inside[-1] = at + piece.count
        found.ends.append(inside)

    def _document_rows(self, segment: TokenSegment, name: str, first: int, count: int) -> np.ndarray:
        if self._whole is None:
            return self._read_array(segment, name, first, count)
        key = (segment.prefix, name)
        array = self._whole.get(key)
        if array is None:
            array = self._read_array(segment, name, 0, segment.documents)
            self._whole[key] = array
        return array[first : first + count]

    def _read_array(self, segment: TokenSegment, name: str, first: int, count: int) -> np.ndarray:
        layout = segment.arrays[name].layout
        out = np.empty((count, *layout.shape[1:]), dtype=layout.dtype)
        self._read_rows(segment, name, first, count, out)
        return out


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """The arrays as one; most units lie in one piece."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
