"""Zarr v3 arrays as fmscale stores them: uncompressed, sharded, so that a shard is raw data plus its index.

An array of shape (n, *rest) is chunked along its first axis only. Shard i lies at `NAME/c/i` (and `/0` for
each further axis). It holds inner chunks of equal size back to back, chunk j at j * chunk_bytes, then the
index of the sharding codec: (offset, length) as uint64 for every chunk that the shard could hold,
(2^64-1, 2^64-1) for an absent one, and the crc32c of those. The last chunk is padded with zeros to its full
size, as Zarr does; `shape` in `zarr.json` is the true length. Format: zarr-specs.readthedocs.io, core v3 and
the `sharding_indexed` codec 1.0.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from fmscale.errors import CorruptData, FormatError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import crc32c

ABSENT = 2**64 - 1
"""Offset and length of an inner chunk that a shard does not hold (all of it is the fill value, zero)."""

Result = TypeVar("Result")


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
    """Where each element of an array lies: what `zarr.json` says."""

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
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape[1:], dtype=np.int64))

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk."""
        return self.inner * self.row_bytes

    @property
    def chunks(self) -> int:
        """Inner chunks that hold any row."""
        return -(-self.rows // self.inner)

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks that a full shard holds, and entries in every shard's index."""
        return self.shard // self.inner

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard)

    def shard_chunks(self, number: int) -> tuple[int, int]:
        """First and one past the last inner chunk of shard `number`, counted over the whole array."""
        first = number * self.chunks_per_shard
        return first, min(first + self.chunks_per_shard, self.chunks)

    def shard_bytes(self, number: int) -> int:
        """Size of shard `number` as fmscale writes it: its chunks back to back, then the index."""
        first, last = self.shard_chunks(number)
        return (last - first) * self.chunk_bytes + index_bytes(self.chunks_per_shard)

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
    """Stored shards in order."""
    crc32c: np.ndarray
    """uint32 per inner chunk over the whole array; padding included."""


def index_bytes(chunks_per_shard: int) -> int:
    """Size of a shard's index with its checksum."""
    return 16 * chunks_per_shard + 4


def encode_index(present: int, chunks_per_shard: int, chunk_bytes: int) -> bytes:
    """Index of a shard that holds its first `present` chunks back to back."""
    index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
    index[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(chunk_bytes)
    index[:present, 1] = chunk_bytes
    data = index.tobytes()
    return data + struct.pack("<I", crc32c(data))


def decode_index(data: bytes, chunks_per_shard: int) -> np.ndarray:
    """(offset, length) of each chunk of a shard, uint64 (chunks_per_shard, 2). Raises CorruptData."""
    if len(data) != index_bytes(chunks_per_shard) or struct.unpack("<I", data[-4:])[0] != crc32c(data[:-4]):
        raise CorruptData("A shard's index does not match its checksum", remedy="Restore or rewrite the shard.")
    return np.frombuffer(data, dtype="<u8", count=2 * chunks_per_shard).reshape(-1, 2)


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
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [layout.shard, *layout.shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": attributes,
    }
    return json.dumps(document, indent=1).encode()


def encode_group(attributes: dict[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1).encode()


def decode_metadata(data: bytes, where: str) -> ArrayLayout:
    """Layout of an array from its `zarr.json`, written by fmscale, by zarr or by others.

    Raises FormatError, naming `where`, for an array that is not stored the way this module describes.
    """
    document = _parsed(lambda: json.loads(data), where)
    layout, sharding = _parsed(lambda: _layout(document), where)
    codecs = [codec["name"] for codec in sharding["codecs"]]
    index_codecs = [codec["name"] for codec in sharding["index_codecs"]]
    both = [*sharding["codecs"], *sharding["index_codecs"]]
    endian = {codec.get("configuration", {}).get("endian", "little") for codec in both}
    outer, inner = document["chunk_grid"]["configuration"]["chunk_shape"], sharding["chunk_shape"]
    rest = list(layout.shape[1:])
    wanted = {
        "zarr_format": (document["zarr_format"], 3),
        "chunk_key_encoding": (
            document["chunk_key_encoding"],
            {"name": "default", "configuration": {"separator": "/"}},
        ),
        "fill_value": (document["fill_value"], 0),
        "storage_transformers": (document.get("storage_transformers", []), []),
        "inner codecs": (codecs, ["bytes"]),
        "byte order": (endian, {"little"}),
        "index codecs": (index_codecs, ["bytes", "crc32c"]),
        "index location": (sharding.get("index_location", "end"), "end"),
        "chunks of the other axes": ((outer[1:], inner[1:]), (rest, rest)),
        "inner chunks in a shard": (layout.shard % layout.inner, 0),
    }
    for what, (found, needed) in wanted.items():
        if found != needed:
            raise FormatError(
                f"{where}: an array with this {what} cannot be read",
                found=found,
                remedy=f"Write it with {what} {needed!r}.",
            )
    return layout


def _layout(document: Any) -> tuple[ArrayLayout, Any]:
    (codec,) = document["codecs"]
    if codec["name"] != "sharding_indexed":
        raise ValueError(f"codec {codec['name']!r} instead of 'sharding_indexed'")
    sharding = codec["configuration"]
    layout = ArrayLayout(
        shape=tuple(int(n) for n in document["shape"]),
        dtype=np.dtype(document["data_type"]).name,
        inner=int(sharding["chunk_shape"][0]),
        shard=int(document["chunk_grid"]["configuration"]["chunk_shape"][0]),
    )
    return layout, sharding


def _parsed(step: Callable[[], Result], where: str) -> Result:
    try:
        return step()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(
            f"{where}: not the zarr.json of a sharded array",
            found=str(error),
            remedy="Expected are Zarr v3 arrays with the sharding_indexed codec and uncompressed chunks.",
        ) from error


def read_array(backend: Backend, prefix: str, start: int = 0, count: int | None = None) -> np.ndarray:
    """Rows [start, start + count) of the array under `prefix`, by its `zarr.json` and shard indexes alone.

    Reads what zarr wrote with these codecs too: any order of chunks in a shard, absent chunks and shards are
    zeros. There are no checksums on the data here: segments are read by `segment.read_tokens`.
    """
    layout = decode_metadata(backend.get(f"{prefix}/zarr.json"), f"{prefix}/zarr.json")
    stop = layout.rows if count is None else min(start + count, layout.rows)
    out = np.zeros((max(stop - start, 0), *layout.shape[1:]), dtype=layout.dtype)
    edges = [start, *range((start // layout.shard + 1) * layout.shard, stop, layout.shard), stop]
    for first, last in pairwise(edges) if len(out) else ():
        _read_shard(backend, prefix, layout, first, last, out[first - start : last - start])
    return out


def _read_shard(backend: Backend, prefix: str, layout: ArrayLayout, start: int, stop: int, out: np.ndarray) -> None:
    """Rows [start, stop) of one shard into `out`."""
    number = start // layout.shard
    key = f"{prefix}/{layout.shard_key(number)}"
    try:
        size = backend.head(key).bytes
    except ObjectNotFound:
        return
    tail = index_bytes(layout.chunks_per_shard)
    if size < tail:
        raise CorruptData(f"Shard {key} is shorter than its index", found=size, remedy="Restore the shard.")
    index = decode_index(backend.get_ranges(key, [(size - tail, tail)])[0], layout.chunks_per_shard)
    base = number * layout.shard
    for chunk in range((start - base) // layout.inner, -(-(stop - base) // layout.inner)):
        offset, length = (int(value) for value in index[chunk])
        if offset == ABSENT and length == ABSENT:
            continue
        if length != layout.chunk_bytes or offset + length > size - tail:
            raise CorruptData(
                f"Chunk {chunk} of {key} lies outside its shard",
                found=(offset, length),
                remedy="Restore the shard.",
            )
        data = np.frombuffer(backend.get_ranges(key, [(offset, length)])[0], dtype=layout.dtype)
        first = base + chunk * layout.inner
        low, high = max(first, start), min(first + layout.inner, stop)
        out[low - start : high - start] = data.reshape(-1, *layout.shape[1:])[low - first : high - first]
