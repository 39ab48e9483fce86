"""Writes a record segment: batches go into scratch files in one pass, then to the store, the seal last."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from io import BufferedWriter, FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from fmscale.errors import DataError
from fmscale.store.digest import DataDigest, crc32c
from fmscale.store.segments.array import ShardInfo
from fmscale.store.segments.array_writer import scratch_errors
from fmscale.store.segments.records import BATCHES_SCHEMA, RECORDS_KEY
from fmscale.store.segments.seal import FORMAT_VERSION
from fmscale.store.segments.writer import SegmentWriter

BATCH_BYTES = 2**21
"""Bytes of a batch, about: large enough for a store's latency, small enough to be shuffled."""

MAX_BATCH_BYTES = 2**22
"""Most bytes of a batch of several records; a single record may be larger."""

FILE_BYTES = 2**28
"""Bytes of a file, about: then a new file begins."""


class RecordSegmentWriter(SegmentWriter):
    """Gathers records: a few batches in memory, the rest in files. Raises DataError for records of another schema."""

    def __init__(
        self,
        scratch: Path,
        *,
        schema: pa.Schema,
        split: str,
        batch_bytes: int = BATCH_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        nested = [field.name for field in schema if "dictionary<" in str(field.type)]
        if nested:
            raise DataError(
                "Dictionary columns cannot be stored in records: a batch must be readable alone",
                found=nested,
                remedy="Cast them to their value type.",
            )
        self.records = 0
        self._schema = schema
        self._split = split
        self._batch_bytes = batch_bytes
        self._file_bytes = file_bytes
        super().__init__(scratch, "records-")
        with scratch_errors(scratch):
            (self._folder / "records").mkdir()
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._index: list[tuple[int, int, int, int, int]] = []
        self._files: list[ShardInfo] = []
        self._file: _Sink | None = None
        self._writer: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Append records, any number at a time."""
        if not batch.schema.equals(self._schema):
            raise DataError(
                "Records of another schema than the segment's",
                found=str(batch.schema),
                remedy=f"Give records of the schema {self._schema}.",
            )
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= self._batch_bytes:
            self._flush()

    def discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the last bytes, and they are discarded anyway
                self._file.close()
            self._file = None
        super().discard()

    def _complete(self) -> tuple[list[str], dict[str, Any]]:
        self._flush()
        self._end_file()
        schema = BATCHES_SCHEMA.with_metadata({RECORDS_KEY: self._schema.serialize().to_pybytes()})
        columns = list(zip(*self._index, strict=True)) or [()] * len(schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        self._write_arrow("checksums.arrow", pa.record_batch(arrays, schema=schema))
        shards = [asdict(file) for file in self._files]
        seal = {
            "format_version": FORMAT_VERSION,
            "kind": "records",
            "split": self._split,
            "documents": self.records,
            "arrays": {"records": {"batches": len(self._index), "shards": shards}},
            "objects": {"checksums.arrow": self._entry("checksums.arrow")},
        }
        return ["checksums.arrow", *(file.key for file in self._files)], seal

    def _flush(self) -> None:
        """Write the pending records as batches of about equal numbers of records."""
        if not self._pending:
            return
        whole = pa.concat_batches(self._pending)
        parts = max(1, self._pending_bytes // self._batch_bytes)
        self._pending, self._pending_bytes = [], 0
        edges = [whole.num_rows * i // parts for i in range(parts + 1)]
        for first, last in pairwise(edges):
            for piece in _pieces(whole.slice(first, last - first)):
                self._write(piece)

    def _write(self, batch: pa.RecordBatch) -> None:
        path = self._folder / self._key()
        with scratch_errors(path):
            if self._file is None:
                self._file = _Sink(path)
                self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), self._schema)
            self._writer.write_batch(batch)
        # A second serialization costs a copy of 2 MiB, but needs no assumption on the pieces that pyarrow writes.
        message = batch.serialize()
        place = (self._file.size - message.size, message.size, crc32c(memoryview(message)))
        self._index.append((len(self._files), *place, self.records))
        self.records += batch.num_rows
        if self._file.size >= self._file_bytes:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is None:
            return
        with scratch_errors(self._folder / self._key()):
            self._writer.close()
            self._file.close()
        self._files.append(ShardInfo(key=self._key(), bytes=self._file.size, digest=self._file.digest.hexdigest()))
        self._file = None

    def _key(self) -> str:
        return f"records/{len(self._files):05d}.arrow"


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Halve the batch until each part has a single record or at most MAX_BATCH_BYTES."""
    if batch.num_rows > 1 and batch.nbytes > MAX_BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half))
        yield from _pieces(batch.slice(half))
    elif batch.num_rows:
        yield batch


class _Sink(BufferedWriter):
    """A file that digests its bytes in the pass that writes them."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path, "wb"))
        self.digest = DataDigest()
        self.size = 0

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.size += view.nbytes
        return super().write(view)
