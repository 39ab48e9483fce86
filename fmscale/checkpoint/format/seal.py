"""A rank's seal: which pieces it has, in which files, with which digests. Its files are complete before it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmscale.checkpoint.format.layout import FileRange
from fmscale.checkpoint.format.names import FORMAT_VERSION
from fmscale.errors import CorruptData, FormatError
from fmscale.store.digest import canonical_json


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One safetensors file on the store."""

    key: str
    """Its key; of this checkpoint's folder or of an earlier one's."""
    bytes: int
    sums: str
    """Digest of the object KEY.crc32c with its chunks' checksums; empty where none were taken."""


@dataclass(frozen=True, kw_only=True)
class StoredPiece:
    """A piece on the store."""

    range: FileRange
    file: int
    """Number of the file in the seal."""
    offset: int
    """First byte in the file."""
    digest: str
    """xxh3_128 of its bytes, 32 hex digits; empty where none was taken."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Pieces and files of one rank: written by it, or referred to."""

    step: int
    folder: str
    rank: int
    world_size: int
    files: tuple[StoredFile, ...]
    pieces: tuple[StoredPiece, ...]
    bytes: int
    """Bytes of tensors that were written for this checkpoint."""
    referenced: int
    """Bytes of tensors that were not, because an earlier checkpoint has them."""
    meta: dict[str, Any] | None = None
    """JSON that belongs to the checkpoint; of rank 0."""
    rank_meta: dict[str, Any] | None = None
    """JSON that belongs to the rank."""


def encode_seal(seal: Seal) -> bytes:
    """Canonical JSON; tensors and pieces as columns."""
    tensors: dict[tuple[Any, ...], int] = {}
    for piece in seal.pieces:
        tensors.setdefault(_tensor(piece.range), len(tensors))
    return canonical_json(
        {
            "format_version": FORMAT_VERSION,
            "step": seal.step,
            "folder": seal.folder,
            "rank": seal.rank,
            "world_size": seal.world_size,
            "bytes": seal.bytes,
            "referenced": seal.referenced,
            "files": [[file.key, file.bytes, file.sums] for file in seal.files],
            "tensors": list(tensors),
            "pieces": {
                "tensor": [tensors[_tensor(piece.range)] for piece in seal.pieces],
                "start": [piece.range.start for piece in seal.pieces],
                "count": [piece.range.count for piece in seal.pieces],
                "file": [piece.file for piece in seal.pieces],
                "offset": [piece.offset for piece in seal.pieces],
                "digest": [piece.digest for piece in seal.pieces],
            },
            "meta": seal.meta,
            "rank_meta": seal.rank_meta,
        }
    )


def decode_seal(data: bytes, where: str) -> Seal:
    """The seal in these bytes. Raises CorruptData, or FormatError for a later version."""
    try:
        fields: Mapping[str, Any] = json.loads(data)
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{where} is no seal", found=data[:80], remedy="Save again.") from error
    check_version(version, where)
    tensors = [(name, state, dtype, tuple(shape)) for name, state, dtype, shape in fields["tensors"]]
    columns = fields["pieces"]
    names = ("tensor", "start", "count", "file", "offset", "digest")
    pieces = []
    for tensor, start, count, file, offset, digest in zip(*(columns[n] for n in names), strict=True):
        name, state, dtype, shape = tensors[tensor]
        one = FileRange(name=name, state=state, dtype=dtype, shape=shape, start=start, count=count)
        pieces.append(StoredPiece(range=one, file=file, offset=offset, digest=digest))
    return Seal(
        step=fields["step"],
        folder=fields["folder"],
        rank=fields["rank"],
        world_size=fields["world_size"],
        files=tuple(StoredFile(key=key, bytes=size, sums=sums) for key, size, sums in fields["files"]),
        pieces=tuple(pieces),
        bytes=fields["bytes"],
        referenced=fields["referenced"],
        meta=fields["meta"],
        rank_meta=fields["rank_meta"],
    )


def check_version(version: object, where: str) -> None:
    """Raise FormatError for a format_version that this fmscale does not read."""
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise FormatError(
            f"{where} is of a format_version that this fmscale does not read",
            found=version,
            remedy=f"It reads versions 1 to {FORMAT_VERSION}; upgrade fmscale to read a later one.",
        )


def _tensor(one: FileRange) -> tuple[Any, ...]:
    return (one.name, one.state, one.dtype, one.shape)
