"""Manifests: which segments make up one split of a commit, and where a token lies among them.

A manifest is an Arrow IPC file with a row per segment in batches of 16,384 rows, 36 bytes a row. Its header,
JSON in the schema's metadata, holds the totals, the first token of each batch and the digest of each column
of each batch; the digest of the header names the manifest. So opening costs the same for any number of
segments, nothing is copied, and a column of a batch is verified when it is first touched: 10^6 segments are
a 36 MB file of which `locate` reads 128 KiB for each batch it meets.
"""

import json
import mmap
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backend import Backend
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.seal import FORMAT_VERSION, SealInfo, check_version

BATCH_ROWS = 16384
"""Segments in a batch: 62 batches and a header of 11 KB for 10^6 segments."""

SCHEMA = pa.schema(
    [
        ("first_token", pa.uint64()),
        ("first_document", pa.uint64()),
        ("unit", pa.uint32()),
        ("seal", pa.binary(16)),
    ]
)
HEADER_KEY = b"fmscale"
_TYPES = (("first_token", "<u8"), ("first_document", "<u8"), ("unit", "<u4"), ("seal", "V16"))
_TOKEN, _DOCUMENT, _UNIT, _SEAL = range(4)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One segment of a manifest."""

    unit: int
    """Work unit of the job that made it."""
    prefix: str
    """Where it lies on the store."""
    seal: str
    """Digest of its seal."""
    first_token: int
    """Tokens of the split before it."""
    tokens: int
    """Tokens in it."""
    first_document: int
    """Documents, or records, of the split before it."""
    documents: int
    """Documents, or records, in it."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Size of one split of a commit."""

    segments: int
    """Number of segments."""
    tokens: int
    """Tokens; 0 for records."""
    documents: int
    """Documents or records."""
    bytes: int
    """Bytes of all objects of its segments."""


def encode_manifest(
    rows: Iterable[tuple[int, SealInfo]], *, kind: str, split: str, dtype: str, job: str, folder: str
) -> tuple[str, Totals, bytes]:
    """(digest, totals, file) of the manifest of these segments: (work unit, seal) by ascending unit.

    `folder` is the job's folder on the store. Raises DataError for segments out of order or of another
    kind, split or type.
    """
    units: list[int] = []
    seals: list[bytes] = []
    tokens, documents, size = [0], [0], 0
    for unit, seal in rows:
        if (seal.kind, seal.split, seal.dtype) != (kind, split, dtype):
            raise DataError(
                f"The segment of unit {unit} does not belong to a manifest of {(kind, split, dtype)}",
                found=(seal.kind, seal.split, seal.dtype),
                remedy="All segments of one split have one kind and one token type.",
            )
        if units and unit <= units[-1]:
            raise DataError(
                "Segments must come by ascending work unit, each once",
                found=(units[-1], unit),
                remedy="Sort them, and give every unit's segment once.",
            )
        units.append(unit)
        seals.append(bytes.fromhex(seal.digest))
        tokens.append(tokens[-1] + seal.tokens)
        documents.append(documents[-1] + seal.documents)
        size += seal.bytes
    totals = Totals(segments=len(units), tokens=tokens[-1], documents=documents[-1], bytes=size)
    columns = {
        "unit": np.array(units, dtype="<u4"),
        "seal": np.frombuffer(b"".join(seals), dtype="V16"),
        "first_token": np.array(tokens[:-1], dtype="<u8"),
        "first_document": np.array(documents[:-1], dtype="<u8"),
    }
    starts = range(0, totals.segments, BATCH_ROWS)
    header = canonical_json(
        {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "split": split,
            "dtype": dtype,
            "job": job,
            "folder": folder,
            "segments": totals.segments,
            "tokens": totals.tokens,
            "documents": totals.documents,
            "bytes": totals.bytes,
            "batch_rows": BATCH_ROWS,
            "first_tokens": [tokens[start] for start in starts],
            "first_documents": [documents[start] for start in starts],
            "digests": [
                [metadata_digest(columns[n][start : start + BATCH_ROWS].tobytes()) for n, _ in _TYPES]
                for start in starts
            ],
        }
    )
    schema = SCHEMA.with_metadata({HEADER_KEY: header})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for start in starts:
            part = {name: column[start : start + BATCH_ROWS] for name, column in columns.items()}
            arrays = [
                pa.Array.from_buffers(
                    SCHEMA.field(n).type, len(part[n]), [None, pa.py_buffer(part[n].tobytes())]
                )
                for n, _ in _TYPES
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return metadata_digest(header), totals, sink.getvalue().to_pybytes()


class Manifest:
    """The segments of one split of a commit, read from a mapped file or a buffer; safe across threads.

    Nothing that grows with the number of segments happens here. Raises CorruptData where the file is not
    the one with this digest, at opening or when the damaged part is first touched.
    """

    def __init__(
        self, file: pa.Buffer, digest: str, where: str, again: Callable[[], pa.Buffer] | None = None
    ) -> None:
        """`again` gives another copy of the file when this one turns out to be damaged."""
        self.digest = digest
        self._where = where
        self._again = again
        self._lock = Lock()
        self._views: dict[tuple[int, int], np.ndarray] = {}
        self._reader, header = self._opened(file)
        fields = json.loads(header)
        check_version(fields, where)
        self.kind: str = fields["kind"]
        self.split: str = fields["split"]
        self.dtype: str = fields["dtype"]
        self.job: str = fields["job"]
        self.folder: str = fields["folder"]
        self.segments: int = fields["segments"]
        self.tokens: int = fields["tokens"]
        self.documents: int = fields["documents"]
        self.bytes: int = fields["bytes"]
        self._batch_rows: int = fields["batch_rows"]
        self._digests: list[list[str]] = fields["digests"]
        self._first = {
            _TOKEN: np.array(fields["first_tokens"], dtype=np.uint64),
            _DOCUMENT: np.array(fields["first_documents"], dtype=np.uint64),
        }
        self._size: dict[int, int] = {_TOKEN: self.tokens, _DOCUMENT: self.documents}

    def locate(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment index (int64) and offset in it (uint64) of each token position of the split (uint64).

        Raises DataError for a position outside the split.
        """
        return self._locate(tokens, _TOKEN)

    def locate_documents(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment index (int64) and offset in it (uint64) of each document or record number (uint64)."""
        return self._locate(documents, _DOCUMENT)

    def segment(self, index: int) -> tuple[str, str]:
        """Prefix and seal digest of a segment."""
        batch, row = divmod(self._checked(index), self._batch_rows)
        unit = int(self._column(batch, _UNIT)[row])
        return f"{self.folder}/{unit:08d}-{self.split}", self._column(batch, _SEAL)[row].tobytes().hex()

    def row(self, index: int) -> Row:
        """All that is recorded of a segment."""
        prefix, seal = self.segment(index)
        batch, row = divmod(index, self._batch_rows)
        token, document = self._start(index, _TOKEN), self._start(index, _DOCUMENT)
        return Row(
            unit=int(self._column(batch, _UNIT)[row]),
            prefix=prefix,
            seal=seal,
            first_token=token,
            tokens=self._start(index + 1, _TOKEN) - token,
            first_document=document,
            documents=self._start(index + 1, _DOCUMENT) - document,
        )

    def rows(self) -> Iterator[Row]:
        """Every segment in order."""
        return (self.row(index) for index in range(self.segments))

    def _locate(self, positions: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.asarray(positions, dtype=np.uint64)
        if positions.size and int(positions.max()) >= self._size[column]:
            raise DataError(
                f"Position outside the split {self.split} of {self._where}",
                found=int(positions.max()),
                remedy=f"It has {self._size[column]}.",
            )
        batches = np.searchsorted(self._first[column], positions, side="right") - 1
        index = np.empty(positions.shape, dtype=np.int64)
        offset = np.empty(positions.shape, dtype=np.uint64)
        for batch in np.flatnonzero(np.bincount(batches.ravel())).tolist():
            here = batches == batch
            starts = self._column(batch, column)
            found = np.searchsorted(starts, positions[here], side="right") - 1
            index[here] = found + batch * self._batch_rows
            offset[here] = positions[here] - starts[found]
        return index, offset

    def _start(self, index: int, column: int) -> int:
        if index == self.segments:
            return self._size[column]
        batch, row = divmod(index, self._batch_rows)
        return int(self._column(batch, column)[row])

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.segments:
            raise DataError(
                f"{self._where} has no such segment", found=index, remedy=f"It has {self.segments}."
            )
        return index

    def _column(self, batch: int, column: int) -> np.ndarray:
        """One column of one batch without a copy, verified the first time."""
        view = self._views.get((batch, column))
        if view is not None:
            return view
        with self._lock:
            try:
                view = self._read(batch, column)
            except CorruptData:
                if self._again is None:
                    raise
                self._reader, self._again = self._opened(self._again())[0], None
                view = self._read(batch, column)
            self._views[batch, column] = view
        return view

    def _opened(self, file: pa.Buffer) -> tuple[pa.ipc.RecordBatchFileReader, bytes]:
        try:
            reader = pa.ipc.open_file(file)
            header: bytes = (reader.schema.metadata or {}).get(HEADER_KEY, b"")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if metadata_digest(header) != self.digest:
            raise self._damaged("its header has another digest")
        return reader, header

    def _read(self, batch: int, column: int) -> np.ndarray:
        name, dtype = _TYPES[column]
        rows = min(self._batch_rows, self.segments - batch * self._batch_rows)
        try:
            data = self._reader.get_batch(batch).column(column).buffers()[1]
            view: np.ndarray = np.frombuffer(data, dtype=dtype, count=rows)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise self._damaged(str(error)) from error
        if metadata_digest(view.view(np.uint8).data) != self._digests[batch][column]:
            raise self._damaged(f"column {name} of batch {batch} does not match its digest")
        return view

    def _damaged(self, what: str) -> CorruptData:
        return CorruptData(
            f"The manifest {self._where} is damaged",
            found=what,
            remedy=f"Its digest is {self.digest}: restore it from a copy, or ingest again.",
        )


def open_manifest(backend: Backend, key: str, digest: str, scratch: Path | None = None) -> Manifest:
    """The manifest under `key`: mapped where the store is a local directory, else fetched once.

    A fetched one is kept in `scratch`, shared by all processes of the machine and mapped from there, or in
    memory without it. A damaged copy in `scratch` is replaced. Raises ObjectNotFound, CorruptData.
    """
    path = backend.local_path(key)
    if path is not None:
        try:
            return Manifest(_mapped(path), digest, key)
        except FileNotFoundError:
            backend.head(key)  # says that it is missing the way this store does
            raise
    if scratch is None:
        return Manifest(pa.py_buffer(backend.get(key)), digest, key)
    copy = scratch / f"manifest-{digest}.arrow"

    def fetch() -> pa.Buffer:
        scratch.mkdir(parents=True, exist_ok=True)
        part = scratch / f"{copy.name}.{uuid.uuid4().hex}"
        try:
            part.write_bytes(backend.get(key))
            os.replace(part, copy)
        finally:
            part.unlink(missing_ok=True)
        return _mapped(copy)

    if copy.exists():
        try:
            return Manifest(_mapped(copy), digest, key, fetch)
        except CorruptData:
            return Manifest(fetch(), digest, key)
    return Manifest(fetch(), digest, key)


def _mapped(path: Path) -> pa.Buffer:
    """The file, mapped. Small pages keep what is not touched out of memory: with large ones the kernel maps
    2 MiB around every touch, all 36 MB of 10^6 segments after locating everywhere instead of 12 MB.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return pa.py_buffer(b"")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return pa.py_buffer(mapping)
