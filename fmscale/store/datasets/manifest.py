"""Manifests: the segments of one split of a commit, and the place of a token among them.

A manifest is an Arrow IPC file with one row per segment, 36 bytes a row. Its header is JSON in the schema's
metadata: the totals and, for every block of 16,384 rows, the digest of each column and the first token and
document. The digest of the header names the manifest. So opening costs the same for any number of segments,
nothing is copied, and the first use of a column of a block verifies it. 10^6 segments make a file of 36 MB, of
which `place` reads 128 KiB for each block. The token positions come first and each column is contiguous, so
that placing tokens of every segment maps 8 MB of the file.
"""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.seal import check_version

COLUMNS = (("first_token", "<u8"), ("first_document", "<u8"), ("unit", "<u4"), ("seal", "V16"))
"""Columns in the order of the file, with their numpy types."""

SCHEMA = pa.schema(
    [("first_token", pa.uint64()), ("first_document", pa.uint64()), ("unit", pa.uint32()), ("seal", pa.binary(16))]
)
HEADER_KEY = b"fmscale"
"""Key of the header in the schema's metadata."""

_TOKEN, _DOCUMENT, _UNIT, _SEAL = range(4)


@dataclass(frozen=True, kw_only=True)
class SegmentRow:
    """One segment of a manifest."""

    prefix: str
    seal: str
    first_token: int
    """Tokens of the split before the segment."""
    first_document: int
    """Documents, or records, of the split before the segment."""
    tokens: int
    documents: int
    """Documents, or records, in the segment."""


@dataclass(frozen=True, kw_only=True)
class SplitTotals:
    """Size of one split of a commit."""

    segments: int
    tokens: int
    """Tokens; 0 for records."""
    documents: int
    bytes: int
    """Bytes of all objects of its segments."""


class Manifest:
    """The segments of one split of a commit, read from a mapped file or a buffer; safe across threads.

    Opening does no work that grows with the number of segments. Raises CorruptData if the file does not match
    the digest, at opening or at the first use of a damaged part.
    """

    def __init__(self, file: pa.Buffer, digest: str, where: str) -> None:
        self.digest = digest
        self._where = where
        self._verified: set[tuple[int, int]] = set()
        try:
            reader = pa.ipc.open_file(file)
            header: bytes = (reader.schema.metadata or {}).get(HEADER_KEY, b"")
            batch = reader.get_batch(0)
            batch.validate()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if metadata_digest(header) != digest:
            raise self._damaged("its header has another digest")
        self.header: dict[str, Any] = json.loads(header)
        """Kind, split, job, folder and totals of the split, as the digest has them."""
        check_version(self.header, where)
        try:
            self._read_header(self.header)
            self._columns = [
                np.frombuffer(batch.column(i).buffers()[1] or b"", dtype=dtype, count=self.segments)
                for i, (_, dtype) in enumerate(COLUMNS)
            ]
        except (pa.ArrowException, IndexError, KeyError, ValueError, TypeError, ArithmeticError) as error:
            raise self._damaged(repr(error)) from error

    def _read_header(self, fields: dict[str, Any]) -> None:
        """Take over the header. Raises ValueError, or an error of types, for fields that contradict each other."""
        self.split: str = fields["split"]
        self.segments: int = fields["segments"]
        self.tokens: int = fields["tokens"]
        self.documents: int = fields["documents"]
        self._folder: str = fields["folder"]
        self._block_rows: int = fields["block_rows"]
        self._digests: list[list[str]] = fields["digests"]
        self._firsts = [np.array(fields[name], dtype=np.uint64) for name in ("first_tokens", "first_documents")]
        for firsts, total in zip(self._firsts, (self.tokens, self.documents), strict=True):
            whole = self.segments >= 0 and len(firsts) == len(self._digests) == -(-self.segments // self._block_rows)
            if not whole or not _ascends(firsts, 0, total):
                raise ValueError(f"{self.segments} segments and {total} do not fit blocks from {firsts[:4]} on")

    def place(self, position: int, *, records: bool = False) -> tuple[int, int]:
        """Segment index, and offset in the segment, of a token of the split; with `records`, of a record or document.
        Raises DataError for a position outside the split.
        """
        column, size = (_DOCUMENT, self.documents) if records else (_TOKEN, self.tokens)
        if not 0 <= position < size:
            raise DataError(
                f"Position outside the split {self.split} of {self._where}",
                found=position,
                remedy=f"It ends at {size}.",
            )
        block = int(self._firsts[column].searchsorted(np.uint64(position), side="right")) - 1
        starts = self._block(block, column)
        row = int(starts.searchsorted(np.uint64(position), side="right")) - 1
        return block * self._block_rows + row, position - int(starts[row])

    def segment(self, index: int) -> tuple[str, str]:
        """Prefix and seal digest of segment `index`. Raises DataError outside the manifest."""
        if not 0 <= index < self.segments:
            raise DataError(f"{self._where} has no such segment", found=index, remedy=f"It has {self.segments}.")
        block, row = divmod(index, self._block_rows)
        unit = int(self._block(block, _UNIT)[row])
        return f"{self._folder}/{unit:08d}-{self.split}", self._block(block, _SEAL)[row].tobytes().hex()

    def row(self, index: int) -> SegmentRow:
        """The place of a segment in the split, and its size."""
        prefix, seal = self.segment(index)
        token, document = self._start(index, _TOKEN), self._start(index, _DOCUMENT)
        return SegmentRow(
            prefix=prefix,
            seal=seal,
            first_token=token,
            first_document=document,
            tokens=self._start(index + 1, _TOKEN) - token,
            documents=self._start(index + 1, _DOCUMENT) - document,
        )

    def rows(self) -> Iterator[SegmentRow]:
        """Every segment in order."""
        return (self.row(index) for index in range(self.segments))

    def _start(self, index: int, column: int) -> int:
        if index == self.segments:
            return self.tokens if column == _TOKEN else self.documents
        block, row = divmod(index, self._block_rows)
        return int(self._block(block, column)[row])

    def _block(self, block: int, column: int) -> np.ndarray:
        """One column of one block, without a copy, verified at its first use."""
        rows = slice(block * self._block_rows, (block + 1) * self._block_rows)
        part = self._columns[column][rows]
        if (block, column) not in self._verified:
            if metadata_digest(part.view(np.uint8).data) != self._digests[block][column]:
                raise self._damaged(f"column {COLUMNS[column][0]} of block {block} has another digest")
            if column in (_TOKEN, _DOCUMENT):
                firsts = self._firsts[column].tolist()
                end = [*firsts, self._start(self.segments, column)][block + 1]
                if not _ascends(part, firsts[block], end):
                    raise self._damaged(f"column {COLUMNS[column][0]} of block {block} does not ascend to {end}")
            self._verified.add((block, column))
        return part

    def _damaged(self, what: str) -> CorruptData:
        return CorruptData(
            f"The manifest {self._where} is damaged",
            found=what,
            remedy=f"Its digest is {self.digest}: restore it from a copy, or ingest again.",
        )


def _ascends(starts: np.ndarray, first: int, end: int) -> bool:
    """True if `starts` (uint64) begin with `first`, never fall, and do not exceed `end`."""
    return not len(starts) or bool(starts[0] == first and starts[-1] <= end and (starts[1:] >= starts[:-1]).all())


def open_manifest(backend: Backend, key: str, digest: str) -> Manifest:
    """The manifest under `key`: mapped where the store is a local directory, else fetched.

    Raises ObjectNotFound, CorruptData.
    """
    path = backend.local_path(key)
    if path is None:
        return Manifest(pa.py_buffer(backend.get(key)), digest, key)
    try:
        return Manifest(_mapped(path), digest, key)
    except FileNotFoundError:
        backend.head(key)  # raises this store's own error for a missing object
        raise


def _mapped(path: Path) -> pa.Buffer:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return pa.py_buffer(b"")
        return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
