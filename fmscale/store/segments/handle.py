"""Handles on sealed segments: arrays, objects and documents that segments of tokens and of records share.

A commit records the digest of the seal, the seal records the digests of the objects, and checksums.arrow holds
the crc32c of each chunk. So every read through a handle is verified against the commit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import verify_chunks
from fmscale.store.segments.array import ArrayLayout, ArraySpec, ShardInfo
from fmscale.store.segments.seal import verified

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("id", pa.binary(16)),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("tokens", pa.int64()),
    ]
)
"""A document's stable id, its source (a path or URL), its span in the source (bytes, or rows) and its tokens; a
record counts as a document of one token.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectRef:
    """The data of one stored object as chunks that can be read and verified one by one."""

    key: str
    bytes: int
    """Bytes of all chunks, from the object's start on; padding included, index excluded."""
    chunk_bytes: int
    """Bytes of a chunk; only the last may be shorter."""
    crc32c: np.ndarray
    """uint32 per chunk."""
    digest: str
    """Name of the content in caches and tiers: xxh3_128 of the whole object; for a checkpoint's file, whose content its
    checksums determine, the digest of these.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Handle on a sealed segment; immutable, and it reads nothing by itself."""

    prefix: str
    """Folder of the segment on the store."""
    documents: int
    arrays: dict[str, ArraySpec]
    objects: dict[str, dict[str, Any]]
    """Size and digest of each object that is no shard and no file of records, by its key in the segment."""

    def array_shard(self, name: str, number: int) -> ObjectRef:
        """Shard `number` of the array `name`."""
        ref = self._refs.get((name, number))
        if ref is None:
            spec = self.arrays[name]
            first, last = spec.layout.shard_chunks(number)
            ref = self._refs[name, number] = ObjectRef(
                key=f"{self.prefix}/{spec.shards[number].key}",
                bytes=(last - first) * spec.layout.chunk_bytes,
                chunk_bytes=spec.layout.chunk_bytes,
                crc32c=spec.crc32c[first:last],
                digest=spec.shards[number].digest,
            )
        return ref

    @cached_property
    def _refs(self) -> dict[tuple[str, int], ObjectRef]:
        """References to objects, kept for later reads: a new ObjectRef costs 8 us, a tenth of the read of a unit."""
        return {}


def decode_sums(table: pa.RecordBatch) -> list[np.ndarray]:
    """The columns of checksums.arrow, without a copy."""
    # Not to_numpy(), which imports pandas where it is installed: 0.1 to 0.3 s before the first batch.
    return [np.frombuffer(c.buffers()[1] or b"", dtype=np.uint32, count=len(table)) for c in table.columns]


def decode_arrays(names: Sequence[str], seal: dict[str, Any], sums: np.ndarray) -> dict[str, ArraySpec]:
    """Arrays from a seal; `sums` has the checksums of all their chunks one after another."""
    arrays: dict[str, ArraySpec] = {}
    for name in names:
        entry = seal["arrays"][name]
        layout = ArrayLayout(
            shape=tuple(entry["shape"]), dtype=entry["dtype"], inner=entry["inner"], shard=entry["shard"]
        )
        shards = tuple(ShardInfo(**shard) for shard in entry["shards"])
        arrays[name] = ArraySpec(name=name, layout=layout, shards=shards, crc32c=sums[: layout.chunks])
        sums = sums[layout.chunks :]
    return arrays


def read_document_table(backend: Backend, segment: Segment) -> pa.Table:
    """The whole table of documents (DOCUMENTS_SCHEMA), verified."""
    key = f"{segment.prefix}/documents.arrow"
    data = verified(backend.get(key), segment.objects["documents.arrow"]["digest"], key)
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def read_rows(backend: Backend, segment: Segment, name: str, start: int, count: int) -> np.ndarray:
    """Rows [start, start + count) of one array of the segment, verified chunk by chunk."""
    spec = segment.arrays[name]
    layout = spec.layout
    if start < 0 or count < 0 or start + count > layout.rows:
        raise DataError(
            f"Rows outside the array {name} of {segment.prefix}",
            found=(start, start + count),
            remedy=f"It has {layout.rows} rows.",
        )
    out = np.empty((count, *layout.shape[1:]), dtype=layout.dtype)
    for ref, low, part in by_shard(segment, name, start, count):
        span = low * layout.row_bytes, (low + part.stop - part.start) * layout.row_bytes
        out[part] = np.frombuffer(read_span(backend, ref, *span), dtype=layout.dtype).reshape(-1, *layout.shape[1:])
    return out


def by_shard(segment: Segment, name: str, start: int, count: int) -> Iterator[tuple[ObjectRef, int, slice]]:
    """Each shard that holds some of an array's rows [start, start + count): its reference, its first such row, and the
    slice of the `count` rows in it.
    """
    shard, at = segment.arrays[name].layout.shard, 0
    while at < count:
        number, low = divmod(start + at, shard)
        stop = min(count, at + shard - low)
        yield segment.array_shard(name, number), low, slice(at, stop)
        at = stop


def read_span(backend: Backend, ref: ObjectRef, start: int, stop: int) -> memoryview:
    """Bytes [start, stop) of an object, from the whole chunks that hold them, verified."""
    first = start // ref.chunk_bytes
    data = memoryview(read_chunks(backend, ref, first, -(-stop // ref.chunk_bytes)))
    return data[start - first * ref.chunk_bytes :][: stop - start]


def read_chunks(backend: Backend, ref: ObjectRef, first: int, last: int) -> bytearray:
    """Chunks [first, last) of an object, verified."""
    start = first * ref.chunk_bytes
    data = bytearray(min(last * ref.chunk_bytes, ref.bytes) - start)
    backend.read_into(ref.key, start, memoryview(data))
    bad = verify_chunks(data, ref.crc32c[first:last], ref.chunk_bytes)
    if bad >= 0:
        raise CorruptData(
            f"Chunk {first + bad} of {ref.key} does not match its checksum",
            remedy="`fmscale dataset verify` lists all damage; restore the object or ingest it again.",
        )
    return data
