"""Record segments of version 1, which are read and no longer written: Arrow IPC files in batches of 1-4 MiB.

    PREFIX/records/00000.arrow ...   Arrow IPC files that any Arrow reader opens
    PREFIX/checksums.arrow           one row per batch: file, offset, bytes, crc32c, first_record; the schema
    PREFIX/seal.json                 sizes and digests of all of these

A batch is one IPC message, so one ranged read and one crc32c give a verified batch without its file's footer.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import crc32c
from fmscale.store.segments.array import ShardInfo
from fmscale.store.segments.records import RECORDS_KEY
from fmscale.store.segments.seal import open_sealed

BATCHES_SCHEMA = pa.schema(
    [
        ("file", pa.uint32()),
        ("offset", pa.uint64()),
        ("bytes", pa.uint64()),
        ("crc32c", pa.uint32()),
        ("first_record", pa.uint64()),
    ]
)
"""Place of each batch: file number, offset, length and crc32c of its IPC message, and the records before it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordBatches:
    """Handle on a sealed record segment of version 1; immutable, holds 32 bytes per batch."""

    prefix: str
    """Folder of the segment on the store."""
    records: int
    """Number of records."""
    schema: pa.Schema
    """Columns of a record."""
    files: tuple[ShardInfo, ...]
    """The stored Arrow files in order."""
    index: dict[str, np.ndarray]
    """Columns of BATCHES_SCHEMA, one element per batch."""

    @property
    def batches(self) -> int:
        """Number of record batches."""
        return len(self.index["file"])

    def batch_range(self, batch: int) -> tuple[str, int, int]:
        """Key, offset and length of a batch's IPC message."""
        key = f"{self.prefix}/{self.files[int(self.index['file'][batch])].key}"
        return key, int(self.index["offset"][batch]), int(self.index["bytes"][batch])


def open_records(backend: Backend, prefix: str, seal_digest: str) -> RecordBatches:
    """The sealed record segment under `prefix`, from two small reads, both verified from `seal_digest` on.

    Raises CorruptData for damaged bytes, ObjectNotFound for a missing object, FormatError for a segment
    of tokens or of a later format_version.
    """
    seal, batch = open_sealed(backend, prefix, seal_digest, "records", 1)
    return RecordBatches(
        prefix=prefix,
        records=seal["documents"],
        schema=pa.ipc.read_schema(pa.py_buffer(batch.schema.metadata[RECORDS_KEY])),
        files=tuple(ShardInfo(**shard) for shard in seal["arrays"]["records"]["shards"]),
        index={name: batch.column(i).to_numpy() for i, name in enumerate(BATCHES_SCHEMA.names)},
    )


def read_batch(backend: Backend, segment: RecordBatches, batch: int) -> pa.RecordBatch:
    """Batch `batch`, from one ranged read, verified. Raises DataError outside the segment, CorruptData."""
    if not 0 <= batch < segment.batches:
        raise DataError(f"{segment.prefix} has no such batch", found=batch, remedy=f"It has {segment.batches} batches.")
    key, offset, size = segment.batch_range(batch)
    data = np.empty(size, dtype=np.uint8)
    backend.read_into(key, offset, data.data)
    if crc32c(data.data) != int(segment.index["crc32c"][batch]):
        raise CorruptData(
            f"Batch {batch} of {key} does not match its checksum",
            remedy="`fmscale dataset verify` lists all damage; restore the object or ingest it again.",
        )
    return pa.ipc.read_record_batch(pa.py_buffer(data), segment.schema)
