"""Writes a record segment: batches go into scratch files in one pass, then to the store, the seal last."""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import DataError
from fmscale.store.digest import DataDigest, crc32c
from fmscale.store.segments.array import ShardInfo
from fmscale.store.segments.array_writer import ArrayWriter, scratch_errors
from fmscale.store.segments.documents_writer import DOCUMENT_CHUNK_BYTES, DOCUMENT_SHARD_BYTES, DocumentsWriter
from fmscale.store.segments.records import CHECKSUMS_SCHEMA, FILE_SHIFT, RECORD_CHUNK_BYTES, RECORDS_KEY, storable
from fmscale.store.segments.seal import RECORDS_VERSION
from fmscale.store.segments.writer import SegmentWriter

BATCH_BYTES = 8192
"""Most bytes of a batch of several records, its IPC header included; a single record may be larger. A sample that moves
to another node is read there with its batch: with 16 KiB 4 nodes read 1.33 times the bytes of their samples, not 1.27,
and the headers of 8 KiB are 2.5 % of texts. With 4 KiB nothing more was gained.
"""

FILE_BYTES = 2**28
"""Bytes of a file, about: then a new file begins."""


class RecordSegmentWriter(SegmentWriter):
    """Gathers records: a batch, the sources' names and 4 bytes per chunk in memory, the rest in files.

    Raises DataError for records of another schema or an id of another length.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        schema: pa.Schema,
        split: str,
        batch_bytes: int = BATCH_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        apart = [field.name for field in schema if storable(field.type) != field.type]
        if apart:
            raise DataError(
                "Columns of dictionaries, runs and views cannot be stored in records: a batch must be readable alone",
                found=apart,
                remedy="Cast them to the type that `records.storable` gives.",
            )
        self.records = 0
        self._schema = schema
        self._split = split
        self._batch_bytes = batch_bytes
        self._file_bytes = file_bytes
        super().__init__(scratch, "records-")
        with scratch_errors(scratch):
            (self._folder / "records").mkdir()
        small = (DOCUMENT_CHUNK_BYTES, DOCUMENT_SHARD_BYTES)
        self._batches = ArrayWriter(self._folder, "batches", "uint64", (3,), *small)
        self._documents = DocumentsWriter(self._folder)
        self._rest: pa.RecordBatch | None = None
        """The last records of all, which fit into a batch and may get company."""
        self._fit = 1
        """Records of the last batch, about as many as fit into the next."""
        self._written = 0
        """Records in batches; the others are the rest."""
        self._first_record = array("I")
        self._sums = array("I")
        self._files: list[ShardInfo] = []
        self._file: _Sink | None = None
        self._writer: Any = None

    def add(
        self,
        batch: pa.RecordBatch,
        ids: Sequence[bytes],
        sources: Sequence[str],
        starts: Sequence[int],
        stops: Sequence[int],
    ) -> None:
        """Append records, any number at a time: for each its id (16 bytes), its source and its span in the source."""
        if not batch.schema.equals(self._schema):
            raise DataError(
                "Records of another schema than the segment's",
                found=str(batch.schema),
                remedy=f"Give records of the schema {self._schema}.",
            )
        counts = (batch.num_rows, len(ids), len(sources), len(starts), len(stops))
        if len(set(counts)) > 1:
            raise DataError(
                "Each record has an id, a source and a span",
                found=counts,
                remedy="Give as many ids, sources, starts and stops as records.",
            )
        for document in zip(ids, sources, starts, stops, strict=True):
            self._documents.add(*document, 1)
        self.records += batch.num_rows
        self._cut(batch)

    def discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the last bytes, and they are discarded anyway
                self._file.close()
            self._file = None
        for writer in (self._batches, self._documents):
            writer.discard()
        super().discard()

    def _complete(self) -> tuple[list[str], dict[str, Any]]:
        if self._rest is not None:
            self._write(self._rest)
        self._end_file()
        specs = [self._batches.close(), self._documents.close()]
        schema = CHECKSUMS_SCHEMA.with_metadata({RECORDS_KEY: self._schema.serialize().to_pybytes()})
        head = {"format_version": RECORDS_VERSION, "kind": "records", "split": self._split, "documents": self.records}
        keys, seal = self._seal(head, specs, schema, self._first_record, self._sums)
        seal["arrays"]["records"] = {"shards": [asdict(file) for file in self._files]}
        return [*keys, *(file.key for file in self._files)], seal

    def _cut(self, batch: pa.RecordBatch) -> None:
        """Write the records, each batch as long as fits, but for a last batch that may get company."""
        while batch.num_rows:
            head = batch.slice(0, self._fitting(batch))
            fits = pa.ipc.get_record_batch_size(head) <= self._batch_bytes
            taken = head.num_rows
            if self._rest is not None and not fits:
                self._write(self._rest)
            elif self._rest is not None:
                head = pa.concat_batches([self._rest, head])
                # The rest fits as it is written, though its slice here has more padding.
                kept = max(self._rest.num_rows, self._fitting(head))
                taken -= head.num_rows - kept
                head = head.slice(0, kept)
            self._rest = None
            batch = batch.slice(taken)
            if batch.num_rows or not fits:
                self._write(head)
            else:
                # A copy: a slice would keep all of the caller's batch in memory.
                self._rest = pa.ipc.read_record_batch(head.serialize(), self._schema)

    def _fitting(self, batch: pa.RecordBatch) -> int:
        """Records at the beginning of the batch that fit into a message of `batch_bytes`; at least one."""
        low, high = 1, batch.num_rows + 1
        probe = self._fit
        while high - low > 1:
            probe = min(max(probe, low + 1), high - 1)
            if pa.ipc.get_record_batch_size(batch.slice(0, probe)) <= self._batch_bytes:
                low = probe
            else:
                high = probe
            probe = min(2 * low, (low + high) // 2)
        self._fit = low
        return low

    def _write(self, batch: pa.RecordBatch) -> None:
        path = self._folder / self._key()
        if batch.num_rows > 1:
            # A copy: pyarrow pads the buffers of a slice to 64 bytes, 2 % of a batch, and others to 8.
            batch = pa.concat_batches([batch.slice(0, 1), batch.slice(1)])
        with scratch_errors(path):
            if self._file is None:
                self._file = _Sink(path, self._sums)
                self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), self._schema)
            self._writer.write_batch(batch)
        size = pa.ipc.get_record_batch_size(batch)
        place = len(self._files) << FILE_SHIFT | (self._file.size - size)
        if self._batches.rows % self._batches.inner == 0:
            self._first_record.append(self._written)
        self._batches.append(np.array([[place, size, self._written]], dtype=np.uint64))
        self._written += batch.num_rows
        if self._file.size >= self._file_bytes:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is None:
            return
        with scratch_errors(self._folder / self._key()):
            self._writer.close()
            self._file.close()
        if self._file.size % RECORD_CHUNK_BYTES:
            self._file.end_chunk()
        self._files.append(ShardInfo(key=self._key(), bytes=self._file.size, digest=self._file.digest.hexdigest()))
        self._file = None

    def _key(self) -> str:
        return f"records/{len(self._files):05d}.arrow"


class _Sink(BufferedWriter):
    """A file that digests its bytes, and appends the crc32c of each chunk to `sums`, in the pass that writes them."""

    def __init__(self, path: Path, sums: "array[int]") -> None:
        super().__init__(FileIO(path, "wb"), 2**20)
        self.digest = DataDigest()
        self.size = 0
        self._sums = sums
        self._crc = 0

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        at = 0
        while at < len(view):
            piece = view[at : at + RECORD_CHUNK_BYTES - self.size % RECORD_CHUNK_BYTES]
            self._crc = crc32c(piece, self._crc)
            at += len(piece)
            self.size += len(piece)
            if self.size % RECORD_CHUNK_BYTES == 0:
                self.end_chunk()
        return super().write(view)

    def end_chunk(self) -> None:
        """Append the crc32c of the bytes since the last chunk."""
        self._sums.append(self._crc)
        self._crc = 0
