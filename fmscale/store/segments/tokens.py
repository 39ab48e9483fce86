"""Token segments: a Zarr group of three arrays with an Arrow table of documents, checksums and a seal.

    PREFIX/zarr.json                   group
    PREFIX/tokens/...                  uint16 or uint32 (tokens,): all documents one after another
    PREFIX/document_ends/...           uint64 (documents,): exclusive end of each document
    PREFIX/document_ids/...            uint64 (documents, 2): stable id, 16 bytes as two little-endian words
    PREFIX/documents.arrow             id, source, start, stop, tokens of each document
    PREFIX/checksums.arrow             one row per inner chunk of tokens, document_ends, document_ids
    PREFIX/seal.json                   written last: sizes and digests of all of these

A commit records the digest of the seal, the seal records the digests of the objects, and checksums.arrow holds
the crc32c of each chunk. So every read of this module is verified against the commit.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import verify_chunks
from fmscale.store.segments.array import ArrayLayout, ArraySpec, ShardInfo
from fmscale.store.segments.seal import open_sealed, verified

ARRAYS = ("tokens", "document_ends", "document_ids")
"""Arrays of a token segment, in the order of their rows in checksums.arrow."""

CHECKSUMS_SCHEMA = pa.schema([("crc32c", pa.uint32()), ("first_document", pa.uint32())])
"""crc32c of the chunk with its padding; for a token chunk also the first document that ends after the
chunk's first token, 0 for the chunks of other arrays.
"""

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("id", pa.binary(16)),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("tokens", pa.int64()),
    ]
)
"""A document's stable id, its source (a path or URL), its span in the source (bytes, or records) and its tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectRef:
    """The data of one stored object as chunks that can be read and verified one by one."""

    key: str
    """Key on the store."""
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
class TokenSegment:
    """Handle on a sealed token segment; immutable, holds 8 bytes per chunk and reads nothing by itself."""

    prefix: str
    """Folder of the segment on the store."""
    tokens: int
    """Number of tokens."""
    documents: int
    """Number of documents."""
    arrays: dict[str, ArraySpec]
    """The segment's arrays by name."""
    objects: dict[str, dict[str, Any]]
    """Bytes and digest of the other objects, by key relative to the prefix."""
    first_document: np.ndarray
    """uint32 per token chunk: index of the first document that ends after the chunk's first token."""

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
        """References to shards, kept for later reads: a new ObjectRef costs 8 us, a tenth of the read of a unit."""
        return {}


def open_segment(backend: Backend, prefix: str, seal_digest: str) -> TokenSegment:
    """The sealed segment under `prefix`, from two small reads, both verified from `seal_digest` on.

    Raises CorruptData for damaged bytes, ObjectNotFound for a missing object, FormatError for a segment
    of records or of a later format_version.
    """
    seal, table = open_sealed(backend, prefix, seal_digest, "tokens")
    # Not to_numpy(), which imports pandas where it is installed: 0.1 to 0.3 s before the first batch.
    sums, first_document = (
        np.frombuffer(table.column(i).buffers()[1] or b"", dtype=np.uint32, count=len(table)) for i in range(2)
    )
    arrays: dict[str, ArraySpec] = {}
    start = 0
    for name in ARRAYS:
        arrays[name] = decode_array(name, seal["arrays"][name], sums[start:])
        start += arrays[name].layout.chunks
    return TokenSegment(
        prefix=prefix,
        tokens=seal["tokens"],
        documents=seal["documents"],
        arrays=arrays,
        objects=seal["objects"],
        first_document=first_document[: arrays["tokens"].layout.chunks],
    )


def decode_array(name: str, entry: dict[str, Any], crc32c: np.ndarray) -> ArraySpec:
    """An array from a seal; `crc32c` starts with the array's checksums."""
    layout = ArrayLayout(shape=tuple(entry["shape"]), dtype=entry["dtype"], inner=entry["inner"], shard=entry["shard"])
    shards = tuple(ShardInfo(**shard) for shard in entry["shards"])
    return ArraySpec(name=name, layout=layout, shards=shards, crc32c=crc32c[: layout.chunks])


def read_tokens(backend: Backend, segment: TokenSegment, start: int, count: int) -> np.ndarray:
    """Tokens [start, start + count), verified. Raises DataError outside the segment, CorruptData."""
    return read_rows(backend, segment, "tokens", start, count)


def read_documents(backend: Backend, segment: TokenSegment, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive ends (count,) and ids (count, 2) of documents [first, first + count), uint64, verified."""
    ends = read_rows(backend, segment, "document_ends", first, count)
    return ends, read_rows(backend, segment, "document_ids", first, count)


def read_document_table(backend: Backend, segment: TokenSegment) -> pa.Table:
    """The whole table of documents (DOCUMENTS_SCHEMA), verified."""
    key = f"{segment.prefix}/documents.arrow"
    data = verified(backend.get(key), segment.objects["documents.arrow"]["digest"], key)
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def read_rows(backend: Backend, segment: TokenSegment, name: str, start: int, count: int) -> np.ndarray:
    """Rows [start, start + count) of one array of the segment, verified chunk by chunk."""
    spec = segment.arrays[name]
    layout = spec.layout
    if start < 0 or count < 0 or start + count > layout.rows:
        raise DataError(
            f"Rows outside the array {name} of {segment.prefix}",
            found=(start, start + count),
            remedy=f"It has {layout.rows} rows.",
        )
    parts = [np.empty((0, *layout.shape[1:]), dtype=layout.dtype)]
    position = start
    while position < start + count:
        number, offset = divmod(position, layout.shard)
        stop = min(start + count - number * layout.shard, layout.shard)
        first, last = offset // layout.inner, -(-stop // layout.inner)
        data = _read_chunks(backend, segment.array_shard(name, number), first, last)
        rows = np.frombuffer(data, dtype=layout.dtype).reshape(-1, *layout.shape[1:])
        parts.append(rows[offset - first * layout.inner : stop - first * layout.inner])
        position = number * layout.shard + stop
    return np.concatenate(parts)


def _read_chunks(backend: Backend, ref: ObjectRef, first: int, last: int) -> bytearray:
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
