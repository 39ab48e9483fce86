"""A checkpoint as a Zarr v3 group, read through zarr-python: STATE/NAME is a logical tensor. Nothing
is copied or converted: the bytes of a chunk are read from the checkpoint and checked when zarr asks for the chunk.

Types that Zarr lacks appear as their bits (bfloat16 as uint16, float8 as uint8); `dtype` in an array's
attributes has torch's name of the type. The group's attributes are the step, the run, and the values saved
beside the tensors.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable
from typing import Any

import torch
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.format.layout import Tensor
from fmscale.errors import AccessDenied

CHUNK_BYTES = 4 << 20
"""About the size of a chunk: whole rows of the first axis."""
_METADATA = "zarr.json"
_PLAIN = frozenset({"bool", "float16", "float32", "float64"}) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def as_zarr(checkpoint: Checkpoint) -> zarr.Group:
    """The checkpoint as a read-only group: `group["exp_avg/layers.0.attention.wq.weight"][:10]`.

    Reading raises CorruptData for damaged chunks and StoreError, as the checkpoint's own methods do.
    """
    return zarr.open_group(CheckpointStore(checkpoint), mode="r")


class CheckpointStore(Store):
    """A read-only Zarr store, whose keys come from a checkpoint's manifest."""

    supports_writes: bool = False
    supports_deletes: bool = False
    supports_listing: bool = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(read_only=True)
        self._checkpoint = checkpoint
        root = {"run": checkpoint.run, "step": checkpoint.step, "meta": checkpoint.meta}
        # The bytes of a metadata object, or the tensor and number of a chunk.
        self._objects: dict[str, bytes | tuple[Tensor, int]] = {_METADATA: _group(root)}
        for info in checkpoint.manifest.tensors:
            path = f"{info.state}/{info.name}"
            parts = path.split("/")
            for depth in range(1, len(parts)):
                self._objects["/".join([*parts[:depth], _METADATA])] = _group({})
            self._objects[f"{path}/{_METADATA}"] = _array(info)
            self._objects |= {f"{path}/{_chunk_key(info, number)}": (info, number) for number in range(_chunks(info))}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckpointStore) and self._checkpoint is other._checkpoint

    __hash__ = None  # type: ignore[assignment]

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object of the hierarchy; None for an unknown key."""
        value = self._objects.get(key)
        if value is None:
            return None
        if isinstance(value, bytes):
            data = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        else:
            data = await asyncio.to_thread(self._chunk, *value)
        return prototype.buffer.from_array_like(_part(data, byte_range).numpy())

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Call `get` for several keys."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """True if the hierarchy has the key."""
        return key in self._objects

    async def set(self, key: str, value: Buffer) -> None:
        """Raise AccessDenied."""
        raise _read_only(key)

    async def delete(self, key: str) -> None:
        """Raise AccessDenied."""
        raise _read_only(key)

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in self._objects:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys that begin with `prefix`."""
        for key in self._objects:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names right below a node."""
        begin = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        below = (key[len(begin) :] for key in self._objects if key.startswith(begin))
        for name in dict.fromkeys(key.split("/", 1)[0] for key in below):
            yield name

    def _chunk(self, tensor: Tensor, number: int) -> torch.Tensor:
        """Bytes of a chunk; zeros fill up the last chunk, as in Zarr."""
        rows, row = _rows(tensor), math.prod(tensor.shape[1:])
        start = number * rows * row
        count = min(rows * row, math.prod(tensor.shape) - start)
        data = self._checkpoint.read(tensor.name, tensor.state, start, count).view(torch.uint8)
        missing = (rows * row - count) * tensor.item_bytes
        return torch.cat([data, torch.zeros(missing, dtype=torch.uint8)]) if missing else data


def _rows(tensor: Tensor) -> int:
    """Rows of the first axis in a chunk."""
    size = math.prod(tensor.shape[1:]) * tensor.item_bytes
    return max(1, min(tensor.shape[0], CHUNK_BYTES // max(1, size))) if tensor.shape else 1


def _chunks(tensor: Tensor) -> int:
    if 0 in tensor.shape:
        return 0
    return -(-tensor.shape[0] // _rows(tensor)) if tensor.shape else 1


def _chunk_key(tensor: Tensor, number: int) -> str:
    return "/".join(["c", str(number), *["0"] * (len(tensor.shape) - 1)]) if tensor.shape else "c"


def _group(attributes: dict[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()


def _array(tensor: Tensor) -> bytes:
    plain = tensor.dtype in _PLAIN
    chunk = [_rows(tensor), *(max(1, size) for size in tensor.shape[1:])] if tensor.shape else []
    endian = {"configuration": {"endian": "little"}} if tensor.item_bytes > 1 else {}
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(tensor.shape),
            "data_type": tensor.dtype if plain else f"uint{8 * tensor.item_bytes}",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", **endian}],
            "fill_value": False if tensor.dtype == "bool" else 0,
            "attributes": {"dtype": tensor.dtype},
        }
    ).encode()


def _part(data: torch.Tensor, byte_range: ByteRequest | None) -> torch.Tensor:
    """The bytes in the requested range."""
    match byte_range:
        case RangeByteRequest(start=start, end=end):
            return data[start:end]
        case OffsetByteRequest(offset=offset):
            return data[offset:]
        case SuffixByteRequest(suffix=suffix):
            return data[max(0, len(data) - suffix) :]
        case _:
            return data


def _read_only(key: str) -> AccessDenied:
    return AccessDenied("a checkpoint is not changed through its Zarr view", found=key, remedy="Copy the array.")
