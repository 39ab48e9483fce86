"""Zarr v3 arrays in fmscale's form: uncompressed and sharded, so that a shard is raw data plus its index.

An array of shape (n, *rest) is chunked along its first axis only. Shard i lies at `NAME/c/i` (and `/0` for
each further axis). It holds inner chunks of equal size back to back, chunk j at j * chunk_bytes, then the
index of the sharding codec: (offset, length) as uint64 for every chunk that the shard could hold,
(2^64-1, 2^64-1) for an absent chunk, and the crc32c of these entries. The last chunk is padded with zeros to its full
size, as in Zarr; `shape` in `zarr.json` is the true length. Format: zarr-specs.readthedocs.io, core v3 and
the `sharding_indexed` codec 1.0.
"""

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fmscale.store.digest import crc32c

ABSENT = 2**64 - 1
"""Offset and length of an inner chunk that a shard does not hold (all its values are zero, the fill value)."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One stored shard of an array."""

    key: str
    """Key relative to the segment, for instance `tokens/c/0`."""
    bytes: int
    """Size of the whole object: data, padding and index."""
    digest: str
    """xxh3_128 of the whole object."""


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Place of each element of an array, as `zarr.json` records it."""

    shape: tuple[int, ...]
    """True shape; chunked along the first axis only."""
    dtype: str
    """Numpy name of the element type; stored little-endian."""
    inner: int
    """Rows (elements along the first axis) in an inner chunk."""
    shard: int
    """Rows in a full shard, a multiple of `inner`."""

    @property
    def rows(self) -> int:
        """Length along the first axis."""
        return self.shape[0]

    @cached_property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape[1:], dtype=np.int64))

    @cached_property
    def chunk_bytes(self) -> int:
        return self.inner * self.row_bytes

    @property
    def chunks(self) -> int:
        """Inner chunks that hold rows."""
        return -(-self.rows // self.inner)

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a full shard; also the number of entries in every shard's index."""
        return self.shard // self.inner

    def shard_chunks(self, number: int) -> tuple[int, int]:
        """Range [first, stop) of the inner chunks of shard `number`, counted over the whole array."""
        first = number * self.chunks_per_shard
        return first, min(first + self.chunks_per_shard, self.chunks)

    def shard_key(self, number: int) -> str:
        """Key of shard `number` relative to the array, in Zarr's default chunk key encoding."""
        return "/".join(["c", str(number)] + ["0"] * (len(self.shape) - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySpec:
    """A written array: its layout, its stored shards and the checksum of every chunk."""

    name: str
    """Name, which is also its folder in the segment."""
    layout: ArrayLayout
    """Shape, type and chunking."""
    shards: tuple[ShardInfo, ...]
    crc32c: np.ndarray
    """uint32 per inner chunk over the whole array; padding included."""


def encode_index(present: int, chunks_per_shard: int, chunk_bytes: int) -> bytes:
    """Index of a shard that holds its first `present` chunks back to back."""
    index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
    index[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(chunk_bytes)
    index[:present, 1] = chunk_bytes
    data = index.tobytes()
    return data + struct.pack("<I", crc32c(data))


def encode_metadata(layout: ArrayLayout, attributes: dict[str, Any]) -> bytes:
    """`zarr.json` of an array."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = little if np.dtype(layout.dtype).itemsize > 1 else {"name": "bytes"}
    sharding = {
        "chunk_shape": [layout.inner, *layout.shape[1:]],
        "codecs": [plain],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.shard, *layout.shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": attributes,
    }
    return json.dumps(document, indent=1).encode()


def encode_group(attributes: dict[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1).encode()
