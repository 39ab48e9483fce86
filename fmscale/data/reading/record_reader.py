"""Reads a unit of a record view into host memory: verified bytes, out of which records are taken without a copy.

A unit is b consecutive records; masks and segment ends cut it into pieces, each within a segment. The index of a
segment's batches is read by chunks of 4 KiB as units need them, and few of them stay in memory.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fmscale.data.forward import RowPiece
from fmscale.data.reading.open_segments import OpenSegments, read_rows
from fmscale.data.samples.protocol import Record
from fmscale.data.views.placement import Placement, SegmentSpan
from fmscale.store.segments.records import RecordSegment, open_record_segment, runs
from fmscale.store.tiers.fetch import CorruptChunk, Fetcher

INDEX_CHUNKS = 2048
"""Chunks of indexes in memory: 8 MiB for the places of 2.8 GB of records in batches of 8 KiB."""


class BatchPart(NamedTuple):
    """Records of one batch in a unit."""

    first: int
    """Offset in the unit of its first record."""
    records: int
    batch: pa.RecordBatch | None
    """The records; None for a damaged batch."""
    error: CorruptChunk | None


class RecordUnit:
    """Records of a unit."""

    def __init__(self, parts: list[BatchPart], ids: np.ndarray | None, bytes: int) -> None:
        self._parts = parts
        self._firsts = [part.first for part in parts]
        self._ids = ids
        self.bytes = bytes
        """Host memory that it takes."""

    def record(self, offset: int) -> Record:
        """The record's values by column. Raises CorruptChunk if no copy can serve it."""
        part = self._parts[int(np.searchsorted(self._firsts, offset, side="right")) - 1]
        if part.batch is None:
            assert part.error is not None
            raise part.error
        row = offset - part.first
        names = part.batch.schema.names
        return {name: part.batch.column(i)[row].as_py() for i, name in enumerate(names)}

    def pieces(self, offset: int) -> list[RowPiece]:
        """The record as a whole. Needs a reader with document ids."""
        name = (0, 0) if self._ids is None else (int(self._ids[offset, 0]), int(self._ids[offset, 1]))
        return [RowPiece(name, 0, 0, 1)]


class RecordReader:
    """Reads units of one record view; used from many threads."""

    def __init__(
        self, placement: Placement, fetcher: Fetcher, *, unit_bytes: int, columns: tuple[str, ...], ids: bool = False
    ) -> None:
        """`columns` are the columns that a spec reads; `ids`: read the records' stable ids too."""
        self.placement = placement
        self.unit_bytes = unit_bytes
        """Bytes of a unit, about."""
        self.fetcher = fetcher
        self._columns = columns
        self._with_ids = ids
        self._segments = OpenSegments(
            placement,
            lambda prefix, seal: open_record_segment(fetcher.backend, prefix, seal),
            lambda segment: segment.bytes_held,
        )
        self._index = lru_cache(INDEX_CHUNKS)(self._read_index)

    def read(self, unit: int, next_use: int = 0) -> RecordUnit:
        """Read the batches of a unit's records."""
        return self._read(*self.placement.pieces(unit), next_use)

    def read_row(self, row: int) -> RecordUnit:
        """Read the batch of one record, which has offset 0."""
        return self._read(*self.placement.row_pieces(row), 0)

    def _read(self, commit: int, pieces: list[SegmentSpan], next_use: int) -> RecordUnit:
        parts: list[BatchPart] = []
        ids: list[np.ndarray] = []
        size = at = 0
        for piece in pieces:
            try:
                segment = self._segments.get(commit, piece.segment)
                found, length = self._read_piece(segment, commit, piece, at, next_use)
                if self._with_ids:
                    ids.append(read_rows(self.fetcher, segment, "document_ids", piece.start, piece.count))
                parts += found
                size += length
            except CorruptChunk as error:
                # Seal, index or ids are damaged: no record of the piece can be trusted.
                parts.append(BatchPart(at, piece.count, None, error))
                ids.append(np.zeros((piece.count, 2), dtype=np.uint64))
            at += piece.count
        return RecordUnit(parts, np.concatenate(ids) if self._with_ids else None, size)

    def _read_piece(
        self, segment: RecordSegment, commit: int, piece: SegmentSpan, at: int, next_use: int
    ) -> tuple[list[BatchPart], int]:
        """The batches that hold a piece, and their bytes. `at` is the piece's place in the unit."""
        parts: list[BatchPart] = []
        size, stop = 0, piece.start + piece.count
        chunks = range(*segment.index_rows(piece.start, piece.count), segment.arrays["batches"].layout.inner)
        index = np.concatenate([self._index(commit, piece.segment, chunk) for chunk in chunks])
        for file, begin, bounds, firsts in runs(segment, index, piece.start, piece.count):
            data = np.empty(bounds[-1], dtype=np.uint8)
            errors = self._read_run(segment, file, begin, bounds, data, next_use)
            size += data.nbytes
            for number, error in enumerate(errors):
                first, last = max(firsts[number], piece.start), min(firsts[number + 1], stop)
                batch = None
                if error is None:
                    message = pa.py_buffer(data[bounds[number] : bounds[number + 1]])
                    whole = pa.ipc.read_record_batch(message, segment.schema)
                    batch = whole.select([n for n in self._columns if n in whole.schema.names])
                    batch = batch.slice(first - firsts[number], last - first)
                parts.append(BatchPart(at + first - piece.start, last - first, batch, error))
        return parts, size

    def _read_index(self, commit: int, number: int, first: int) -> np.ndarray:
        """The chunk of a segment's index that begins with row `first`."""
        segment = self._segments.get(commit, number)
        layout = segment.arrays["batches"].layout
        return read_rows(self.fetcher, segment, "batches", first, min(layout.inner, layout.rows - first))

    def _read_run(
        self, segment: RecordSegment, file: int, begin: int, bounds: list[int], data: np.ndarray, next_use: int
    ) -> list[CorruptChunk | None]:
        """Read batches that follow one another in a file. Returns the damage of each batch."""
        ref = segment.file(file)
        try:
            self.fetcher.read(ref, begin, data.data, next_use)
        except CorruptChunk as error:
            if len(bounds) == 2:
                return [error]
        else:
            return [None] * (len(bounds) - 1)
        return [
            self._read_run(segment, file, begin + low, [0, high - low], data[low:high], next_use)[0]
            for low, high in pairwise(bounds)
        ]
