"""Record segments of version 1, which are read and no longer written: Arrow IPC files in batches of 1-4 MiB.

    PREFIX/records/00000.arrow ...   Arrow IPC files that any Arrow reader opens
    PREFIX/checksums.arrow           one row per batch: file, offset, bytes, crc32c, first_record; the schema
    PREFIX/seal.json                 sizes and digests of all of these

A batch is one IPC message, so one ranged read and one crc32c give a verified batch without its file's footer.
"""

from dataclasses import dataclass

import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import crc32c
from fmscale.store.segments.records import RECORDS_KEY
from fmscale.store.segments.seal import open_sealed

COLUMNS = ("file", "offset", "bytes", "crc32c")
"""Columns of checksums.arrow that place a batch: file number, offset, length and crc32c of its IPC message."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordBatches:
    """Handle on a sealed record segment of version 1."""

    prefix: str
    """Folder of the segment on the store."""
    records: int
    schema: pa.Schema
    """Columns of a record."""
    files: tuple[str, ...]
    """Keys of the stored Arrow files in order."""
    index: pa.RecordBatch
    """The rows of checksums.arrow."""

    @property
    def batches(self) -> int:
        """Number of record batches."""
        return int(self.index.num_rows)

    def batch_range(self, batch: int) -> tuple[str, int, int]:
        """Key, offset and length of a batch's IPC message."""
        file, offset, size = (self.index[name][batch].as_py() for name in COLUMNS[:3])
        return self.files[file], offset, size


def open_records(backend: Backend, prefix: str, seal_digest: str) -> RecordBatches:
    """The sealed record segment under `prefix`, from two small reads, both verified from `seal_digest` on.

    Raises CorruptData for damaged bytes, ObjectNotFound for a missing object, FormatError for a segment
    of tokens or of a later format_version.
    """
    seal, index = open_sealed(backend, prefix, seal_digest, "records", 1)
    return RecordBatches(
        prefix=prefix,
        records=seal["documents"],
        schema=pa.ipc.read_schema(pa.py_buffer(index.schema.metadata[RECORDS_KEY])),
        files=tuple(f"{prefix}/{file['key']}" for file in seal["arrays"]["records"]["shards"]),
        index=index,
    )


def read_batch(backend: Backend, segment: RecordBatches, batch: int) -> pa.RecordBatch:
    """Batch `batch`, from one ranged read, verified. Raises DataError outside the segment, CorruptData."""
    if not 0 <= batch < segment.batches:
        raise DataError(f"{segment.prefix} has no such batch", found=batch, remedy=f"It has {segment.batches} batches.")
    key, offset, size = segment.batch_range(batch)
    data = bytearray(size)
    backend.read_into(key, offset, memoryview(data))
    if crc32c(data) != segment.index["crc32c"][batch].as_py():
        raise CorruptData(
            f"Batch {batch} of {key} does not match its checksum",
            remedy="`fmscale dataset verify` lists all damage; restore the object or ingest it again.",
        )
    return pa.ipc.read_record_batch(pa.py_buffer(data), segment.schema)
