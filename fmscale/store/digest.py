"""Checksums and digests, and the data that each guards.

Bulk data carries a crc32c per chunk and an xxh3_128 per object. Every read checks the crc32c (13 GB/s on one core of
an AVX-512 machine: checking costs less than copying). The xxh3_128 names the object in the cache, and `verify` checks
it. The sha256, cut to 128 bits, names small metadata (seals, manifests, plans, views): this digest is the root of
every other checksum, and 1.4 GB/s is fast enough for metadata.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from crc32c import crc32c as _crc32c

CHUNK_BYTES = 65536
"""Bytes under one checksum by default, as in checkpoints: their ranges are megabytes long."""

Bytes = bytes | bytearray | memoryview
"""Contiguous buffers of bytes."""


def crc32c(data: Bytes, value: int = 0) -> int:
    """crc32c (Castagnoli, RFC 3720) of `data`; `value` is the crc32c of the bytes before `data`."""
    return int(_crc32c(data, value))


def chunk_checksums(data: Bytes, chunk_bytes: int = CHUNK_BYTES) -> np.ndarray:
    """crc32c of every chunk of the data, uint32; the last chunk may be short."""
    view = memoryview(data).cast("B")
    count = -(-len(view) // chunk_bytes)
    sums = (_crc32c(view[i * chunk_bytes : (i + 1) * chunk_bytes]) for i in range(count))
    return np.fromiter(sums, dtype=np.uint32, count=count)


def verify_chunks(buffer: Bytes, expected: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> int:
    """`verify_parts` of one buffer."""
    return verify_parts((memoryview(buffer).cast("B"),), expected, chunk_bytes)


def verify_parts(parts: Sequence[memoryview], expected: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Index of the first chunk whose crc32c differs from `expected`, or -1 if all match. The chunks lie back to
    back in `parts` (bytes), and a chunk may begin in one part and end in another.

    The last chunk may be short. If `parts` hold fewer chunks than `expected`, the first missing chunk is bad; if
    they hold more, the first chunk without an expected crc32c is bad.
    """
    values = expected.tolist()
    chunk = crc = 0
    room = chunk_bytes
    for part in parts:
        at, length = 0, len(part)
        while at < length:
            if room == chunk_bytes:  # whole chunks, in a shorter loop than pieces of chunks
                for value in values[chunk : chunk + (length - at) // chunk_bytes]:
                    if _crc32c(part[at : at + chunk_bytes]) != value:
                        return chunk
                    at += chunk_bytes
                    chunk += 1
                if at == length:
                    break
            piece = part[at : at + room]
            crc = _crc32c(piece, crc)
            at += room
            if at > length:
                room = at - length
                break
            if chunk == len(values) or crc != values[chunk]:
                return chunk
            chunk, crc, room = chunk + 1, 0, chunk_bytes
    if room < chunk_bytes:
        if chunk == len(values) or crc != values[chunk]:
            return chunk
        chunk += 1
    return -1 if chunk == len(values) else chunk


def data_digest(data: Bytes) -> str:
    """xxh3_128 of bulk data, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


DataDigest = xxhash.xxh3_128
"""`data_digest` of data that arrives in parts: `update`, `hexdigest`."""

MetadataDigest = hashlib.sha256
"""`metadata_digest` of data that arrives in parts: `update`, and the first 32 digits of `hexdigest`."""


def metadata_digest(data: Bytes) -> str:
    """sha256 of small metadata cut to 128 bits, 32 hex digits."""
    return hashlib.sha256(data).hexdigest()[:32]


def canonical_json(value: Any) -> bytes:
    """Canonical JSON of a value: sorted keys, no spaces, UTF-8, no NaN. Equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()
