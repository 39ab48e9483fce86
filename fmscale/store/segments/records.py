"""Record segments: images, audio, pairs, chats as Arrow IPC files whose batches and checksums are indexed.

    PREFIX/zarr.json                   group
    PREFIX/records/00000.arrow ...     Arrow IPC files that any Arrow reader opens; a batch has 8 KiB or one record
    PREFIX/batches/...                 uint64 (batches, 3): place (file << 48 | offset), bytes, first record
    PREFIX/document_ids/...            uint64 (records, 2): stable id, 16 bytes as two little-endian words
    PREFIX/documents.arrow             id, source, start, stop of each record, and tokens = 1
    PREFIX/checksums.arrow             one row per 4 KiB of each file, then per inner chunk of batches, document_ids;
                                       the schema of the records
    PREFIX/seal.json                   written last: sizes and digests of all of these

A batch is one IPC message, so a ranged read gives a batch without its file's footer. `records_version_1.py` reads the
first version of the format.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import Bytes
from fmscale.store.segments.array import ShardInfo
from fmscale.store.segments.handle import ObjectRef, Segment, decode_arrays, decode_sums, read_rows, read_span
from fmscale.store.segments.seal import RECORDS_VERSION, open_sealed

RECORD_CHUNK_BYTES = 4096
"""Bytes of a records file under one checksum. A unit of 256 KiB then reads 1.1 times its bytes at most: edges of
batches are 6 %, edges of chunks 1.5 %.
"""

ARRAYS = ("batches", "document_ids")
"""Arrays of a record segment, in the order of their rows in checksums.arrow, behind those of the files."""

CHECKSUMS_SCHEMA = pa.schema([("crc32c", pa.uint32()), ("first_record", pa.uint32())])
"""crc32c of the chunk; for a chunk of `batches` also the first record of its first batch, 0 for other chunks."""

RECORDS_KEY = b"fmscale.records"
"""Key of the records' own schema (an IPC schema message) in the metadata of checksums.arrow."""

FILE_SHIFT = 48
"""Bits of a batch's offset in its file, below the number of the file."""

OBJECT_BYTES = 1024
"""Bytes of the Python objects for one stored object of a handle, about."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordSegment(Segment):
    """Handle on a sealed record segment; holds 4 bytes per chunk and its schema."""

    schema: pa.Schema
    """Columns of a record."""
    files: tuple[ShardInfo, ...]
    """The stored Arrow files in order."""
    file_crc32c: np.ndarray
    """uint32 per chunk of the files, one file after another."""
    first_record: np.ndarray
    """uint32 per chunk of `batches`: first record of the chunk's first batch."""
    bytes_held: int
    """Memory of the handle, for a reader that bounds its open handles."""

    def file(self, number: int) -> ObjectRef:
        """File `number` as chunks."""
        ref = self._refs.get(("records", number))
        if ref is None:
            file = self.files[number]
            first = sum(file_chunks(other) for other in self.files[:number])
            ref = self._refs["records", number] = ObjectRef(
                key=f"{self.prefix}/{file.key}",
                bytes=file.bytes,
                chunk_bytes=RECORD_CHUNK_BYTES,
                crc32c=self.file_crc32c[first : first + file_chunks(file)],
                digest=file.digest,
            )
        return ref

    def index_rows(self, first: int, count: int) -> tuple[int, int]:
        """Rows [start, stop) of `batches`, whole chunks, that hold the batches of `count` > 0 records from `first` on.

        Raises DataError outside the segment.
        """
        if first < 0 or count < 1 or first + count > self.documents:
            raise DataError(
                f"Records outside {self.prefix}",
                found=(first, first + count),
                remedy=f"It has {self.documents} records.",
            )
        layout = self.arrays["batches"].layout
        low, high = self.first_record.searchsorted((first, first + count - 1), side="right").tolist()
        return (low - 1) * layout.inner, min(high * layout.inner, layout.rows)


def open_record_segment(backend: Backend, prefix: str, seal_digest: str) -> RecordSegment:
    """The sealed record segment under `prefix`, from two small reads, both verified from `seal_digest` on.

    Raises CorruptData for damaged bytes, ObjectNotFound for a missing object, FormatError for a segment
    of tokens, of version 1 or of a later format_version.
    """
    seal, table = open_sealed(backend, prefix, seal_digest, "records", RECORDS_VERSION)
    files = tuple(ShardInfo(**file) for file in seal["arrays"]["records"]["shards"])
    count = sum(map(file_chunks, files))
    # Copies: a view would keep the whole file in memory.
    sums, first_record = (column.copy() for column in decode_sums(table))
    arrays = decode_arrays(ARRAYS, seal, sums[count:])
    first_record = first_record[count : count + arrays["batches"].layout.chunks].copy()
    schema = table.schema.metadata[RECORDS_KEY]
    objects = len(seal["objects"]) + len(files) + sum(len(spec.shards) for spec in arrays.values())
    return RecordSegment(
        prefix=prefix,
        documents=seal["documents"],
        arrays=arrays,
        objects=seal["objects"],
        schema=pa.ipc.read_schema(pa.py_buffer(schema)),
        files=files,
        file_crc32c=sums[:count],
        first_record=first_record,
        bytes_held=sums.nbytes + first_record.nbytes + 2 * len(schema) + OBJECT_BYTES * objects,
    )


def storable(type: pa.DataType) -> pa.DataType:
    """The type of a column whose batches can be read alone and cut short: the type itself, or for dictionaries and runs
    that of their values, and for views (a cut batch has all their bytes) the type of the same values.
    """
    if pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type):
        return storable(type.value_type)
    if isinstance(type, pa.BaseExtensionType):
        return type if storable(type.storage_type) == type.storage_type else storable(type.storage_type)
    if pa.types.is_map(type):
        key, item = (field.with_type(storable(field.type)) for field in (type.key_field, type.item_field))
        return pa.map_(key, item, keys_sorted=type.keys_sorted)
    fields = [type.field(i).with_type(storable(type.field(i).type)) for i in range(type.num_fields)]
    if pa.types.is_struct(type):
        return pa.struct(fields)
    if pa.types.is_fixed_size_list(type):
        return pa.list_(fields[0], type.list_size)
    if pa.types.is_list(type) or pa.types.is_list_view(type):
        return pa.list_(fields[0])
    if pa.types.is_large_list(type) or pa.types.is_large_list_view(type):
        return pa.large_list(fields[0])
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(type, type)


def runs(
    segment: RecordSegment, index: np.ndarray, first: int, count: int
) -> Iterator[tuple[int, int, list[int], list[int]]]:
    """The batches of records [first, first + count), by runs that lie back to back in a file: the file's number, the
    run's offset in it, the bounds of the batches from there on, and the first records of the batches and of the next.
    `index` is the part of `batches` that `index_rows` names.
    """
    firsts = np.append(index[:, 2], np.uint64(segment.documents))
    low = int(firsts.searchsorted(np.uint64(first), side="right")) - 1
    high = int(firsts.searchsorted(np.uint64(first + count)))
    index, firsts = index[low:high], firsts[low : high + 1]
    ends = np.flatnonzero(index[1:, 0] != index[:-1, 0] + index[:-1, 1]) + 1
    for begin, end in pairwise([0, *ends.tolist(), len(index)]):
        file, offset = divmod(int(index[begin, 0]), 1 << FILE_SHIFT)
        yield file, offset, [0, *np.cumsum(index[begin:end, 1]).tolist()], firsts[begin : end + 1].tolist()


def decode_batch(data: Bytes, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The records of a batch's verified message. Raises CorruptData for a message that is none of the schema's."""
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
        batch.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptData(
            f"A batch of {where} has the right checksum and cannot be read",
            found=str(error)[:200],
            remedy="The program that wrote it has a fault: ingest the records again.",
        ) from error
    return batch


def read_records(backend: Backend, segment: RecordSegment, first: int, count: int) -> pa.Table:
    """Records [first, first + count), verified chunk by chunk. Raises DataError outside the segment, CorruptData."""
    if count == 0 and 0 <= first <= segment.documents:
        return segment.schema.empty_table()
    start, stop = segment.index_rows(first, count)
    index = read_rows(backend, segment, "batches", start, stop - start)
    batches: list[pa.RecordBatch] = []
    for number, offset, bounds, firsts in runs(segment, index, first, count):
        ref = segment.file(number)
        data = read_span(backend, ref, offset, offset + bounds[-1])
        for (low, high), record in zip(pairwise(bounds), firsts[:-1], strict=True):
            batch = decode_batch(data[low:high], segment.schema, ref.key)
            skipped = max(first - record, 0)
            batches.append(batch.slice(skipped, first + count - record - skipped))
    return pa.Table.from_batches(batches, schema=segment.schema)


def file_chunks(file: ShardInfo) -> int:
    """Chunks of a records file."""
    return -(-file.bytes // RECORD_CHUNK_BYTES)
