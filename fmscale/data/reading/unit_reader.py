"""Reads a unit of a view into host memory: its tokens, verified, and the ends of its documents.

A unit is b consecutive rows; masks and segment ends cut it into pieces, each within one segment.
"""

from contextlib import suppress
from typing import NamedTuple

import numpy as np

from fmscale.data.batch import UnitDocuments
from fmscale.data.reading.open_segments import OpenSegments, read_rows
from fmscale.data.views.placement import Placement, SegmentSpan
from fmscale.store.segments.array import ArrayLayout
from fmscale.store.segments.handle import ObjectRef, by_shard
from fmscale.store.segments.tokens import TokenSegment, open_segment
from fmscale.store.tiers.fetch import CorruptChunk, Fetcher

WHOLE_DOCUMENT_BYTES = 64 * 2**20
"""Most bytes of a view's document arrays that stay in memory, for a remote store: this saves two requests a unit, each
for a few entries.
"""
WHOLE_DOCUMENT_BYTES_LOCAL = 2**18
"""The same for a local store, whose page cache serves all ranks of a node: with 1.3 million documents in memory each
rank held 8 MB more.
"""


_NO_IDS = np.empty((0, 2), dtype=np.uint64)

Damage = tuple[int, int, CorruptChunk]
"""(first, stop, reason) of rows that no copy can serve."""


class UnitRead(NamedTuple):
    """Result of reading a unit."""

    documents: UnitDocuments
    damaged: list[Damage]
    """Tokens of the unit that no copy can serve; zeros in memory."""


class UnitReader:
    """Reads units of one view; used from many threads."""

    def __init__(self, placement: Placement, fetcher: Fetcher, *, document_ids: bool = False) -> None:
        """`document_ids`: read the documents' stable ids too."""
        self.placement = placement
        self.view = placement.view
        self.fetcher = fetcher
        self.document_ids = document_ids
        total = sum(manifest.documents for manifest in placement.manifests if manifest is not None)
        local = fetcher.backend.local_path("local") is not None
        most = WHOLE_DOCUMENT_BYTES_LOCAL if local else WHOLE_DOCUMENT_BYTES
        self._whole: dict[tuple[str, str], np.ndarray] | None = (
            {} if total * (24 if document_ids else 8) <= most else None
        )
        self._segments = OpenSegments(placement, self._open_segment, lambda segment: 8 * len(segment.first_document))

    def read(self, unit: int, into: np.ndarray, next_use: int = 0) -> UnitRead:
        """Read unit `unit` into the beginning of `into` (tokens of the view's dtype).

        Raises StoreUnavailable, AccessDenied or another StoreError if the store serves no data.
        """
        return self._read(*self.placement.pieces(unit), into, next_use)

    def read_row(self, row: int, into: np.ndarray) -> UnitRead:
        """Read a single row into `into`; its positions are those of a unit with this row alone."""
        return self._read(*self.placement.row_pieces(row), into, 0)

    def _read(self, commit: int, pieces: list[SegmentSpan], into: np.ndarray, next_use: int) -> UnitRead:
        documents: list[tuple[int, np.ndarray, np.ndarray]] = []
        damaged: list[Damage] = []
        at = 0
        for piece in pieces:
            stop = at + piece.count
            try:
                segment = self._segments.get(commit, piece.segment)
                tokens = into[at:stop]
                for first, last, error in self._read_tokens(segment, piece.start, tokens, next_use):
                    tokens[first:last] = 0
                    damaged.append((at + first, at + last, error))
                documents.append(self._read_documents(segment, piece, at))
            except CorruptChunk as error:
                # The seal or document arrays are damaged: no row of the piece can be trusted.
                damaged.append((at, stop, error))
                documents.append((0, np.array([stop], dtype=np.int64), np.zeros((1, 2), dtype=np.uint64)))
            at = stop
        offsets, ends, ids = zip(*documents, strict=True)
        names = np.concatenate(ids) if self.document_ids else None
        return UnitRead(UnitDocuments(ends=np.concatenate(ends), offset=offsets[0], ids=names), damaged)

    def advise(self, unit: int, next_use: int = 0) -> None:
        """Announce a coming read of the unit. That read reports damage."""
        commit, pieces = self.placement.pieces(unit)
        for piece in pieces:
            with suppress(CorruptChunk):
                segment = self._segments.get(commit, piece.segment)
                row_bytes = segment.arrays["tokens"].layout.row_bytes
                for ref, low, part in by_shard(segment, "tokens", piece.start, piece.count):
                    self.fetcher.advise(ref, low * row_bytes, (part.stop - part.start) * row_bytes, next_use)

    def _open_segment(self, prefix: str, seal: str) -> TokenSegment:
        segment = open_segment(self.fetcher.backend, prefix, seal)
        if self._whole is None:
            self._announce_documents(segment)
        return segment

    def _announce_documents(self, segment: TokenSegment) -> None:
        """Announce the document arrays to a disk, which then needs one read instead of a few KiB for each unit."""
        for name in ("document_ends", "document_ids") if self.document_ids else ("document_ends",):
            for number in range(len(segment.arrays[name].shards)):
                ref = segment.array_shard(name, number)
                self.fetcher.backend.advise(ref.key, 0, ref.bytes)

    def _read_tokens(self, segment: TokenSegment, start: int, out: np.ndarray, next_use: int) -> list[Damage]:
        """Fill `out` with tokens of the segment from `start` on. Returns the ranges of `out` that no copy can serve."""
        layout = segment.arrays["tokens"].layout
        damaged: list[Damage] = []
        for ref, low, part in by_shard(segment, "tokens", start, len(out)):
            try:
                self.fetcher.read(ref, low * layout.row_bytes, out[part].data.cast("B"), next_use)
            except CorruptChunk:
                damaged += self._salvage(ref, layout, low, out[part], part.start)
        return damaged

    def _salvage(self, ref: ObjectRef, layout: ArrayLayout, low: int, out: np.ndarray, at: int) -> list[Damage]:
        """Read a shard from row `low` on by chunks. Returns ranges without a good copy, as rows of `out` plus `at`."""
        damaged: list[Damage] = []
        high = low + len(out)
        for chunk in range(low // layout.inner, -(-high // layout.inner)):
            start, stop = max(low, chunk * layout.inner), min(high, (chunk + 1) * layout.inner)
            try:
                self.fetcher.read(ref, start * layout.row_bytes, out[start - low : stop - low].data.cast("B"), 0)
            except CorruptChunk as error:
                damaged.append((at + start - low, at + stop - low, error))
        return damaged

    def _read_documents(self, segment: TokenSegment, piece: SegmentSpan, at: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Tokens of the first document before the piece; ends of the piece's documents in the unit's positions, where
        the last document ends with the piece; and their ids, with `document_ids`.
        """
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
        count = last - first + 1 if self.document_ids else 0
        ids = self._document_rows(segment, "document_ids", before + first, count) if count else _NO_IDS
        inside = ends[first : last + 1] - (piece.start - at)
        inside[-1] = at + piece.count
        return piece.start - (int(ends[first - 1]) if first else 0), inside, ids

    def _document_rows(self, segment: TokenSegment, name: str, first: int, count: int) -> np.ndarray:
        if self._whole is None:
            return read_rows(self.fetcher, segment, name, first, count)
        key = (segment.prefix, name)
        array = self._whole.get(key)
        if array is None:
            array = read_rows(self.fetcher, segment, name, 0, segment.documents)
            self._whole[key] = array
        return array[first : first + count]
