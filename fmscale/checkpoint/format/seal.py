"""A rank's seal: its pieces with their files and digests, written after the files are complete."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmscale.checkpoint.format.layout import FileRange, Tensor
from fmscale.checkpoint.format.names import FORMAT_VERSION
from fmscale.errors import CorruptData, FormatError
from fmscale.store.digest import canonical_json


class StoredFile(NamedTuple):
    """One safetensors file on the store."""

    key: str
    """Key of the file, in this checkpoint's folder or an earlier checkpoint's folder."""
    bytes: int
    sums: str
    """Digest of the object KEY.crc32c with the chunks' checksums; empty for a file without checksums."""


class StoredPiece(NamedTuple):
    """A piece on the store."""

    range: FileRange
    file: int
    """Number of the file in the seal."""
    offset: int
    """First byte in the file."""
    digest: str
    """xxh3_128 of the piece's bytes, 32 hex digits; empty for a piece without a digest."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Pieces and files that one rank wrote or refers to."""

    step: int
    folder: str
    rank: int
    world_size: int
    files: tuple[StoredFile, ...]
    pieces: tuple[StoredPiece, ...]
    bytes: int
    """Bytes of tensors that were written for this checkpoint."""
    referenced: int
    """Bytes of tensors that an earlier checkpoint holds, and that were not written again."""
    meta: dict[str, Any] | None = None
    """JSON of the checkpoint, in the seal of rank 0; None in all other seals."""
    rank_meta: dict[str, Any] | None = None
    """JSON of the rank."""


_PLAIN = ("step", "folder", "rank", "world_size", "bytes", "referenced", "meta", "rank_meta")
"""Fields of a seal that are stored as they are."""
_DIGESTS = re.compile(r"(?:(?:[0-9a-f]{32})?,)*")
"""All digests of a seal, with a comma behind each: one match, where one a piece took a third of the decoding."""
_COLUMNS = ("tensor", "start", "count", "file", "offset", "digest")
"""Columns of a seal's pieces; each piece is a row."""


def encode_seal(seal: Seal) -> bytes:
    """Encode a seal as canonical JSON, with its pieces as columns."""
    tensors = list(dict.fromkeys(piece.range.tensor for piece in seal.pieces))
    numbers = {tensor: number for number, tensor in enumerate(tensors)}
    rows = [
        (numbers[piece.range.tensor], piece.range.start, piece.range.count, piece.file, piece.offset, piece.digest)
        for piece in seal.pieces
    ]
    return canonical_json(
        {
            **{name: getattr(seal, name) for name in _PLAIN},
            "format_version": FORMAT_VERSION,
            "files": seal.files,
            "tensors": tensors,
            "pieces": {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)},
        }
    )


def decode_seal(data: bytes, where: str) -> Seal:
    """Decode a seal. Raises CorruptData, or FormatError for a later version."""
    try:
        fields: Mapping[str, Any] = json.loads(data)
        check_version(fields["format_version"], where)
        tensors = [Tensor(name, state, dtype, tuple(shape)) for name, state, dtype, shape in fields["tensors"]]
        files = tuple(StoredFile(*file) for file in fields["files"])
        columns = [fields["pieces"][name] for name in _COLUMNS]
        for numbers, size in ((columns[0], len(tensors)), (columns[3], len(files))):
            if numbers and not 0 <= min(numbers) <= max(numbers) < size:
                raise ValueError("a piece of no tensor or no file")
        longest = max(map(len, columns[5]), default=0)
        if longest > 32 or not _DIGESTS.fullmatch("".join(f"{digest}," for digest in columns[5])):
            raise ValueError("a digest that no save writes")
        pieces = [
            StoredPiece(FileRange(tensor=tensors[tensor], start=start, count=count), file, at, digest)
            for tensor, start, count, file, at, digest in zip(*columns, strict=True)
        ]
        return Seal(**{name: fields[name] for name in _PLAIN}, files=files, pieces=tuple(pieces))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptData(f"{where} is no seal", found=data[:80], remedy="Save again.") from error


def check_version(version: object, where: str) -> None:
    """Raise FormatError for a format_version that this fmscale does not read."""
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise FormatError(
            f"{where} is of a format_version that this fmscale does not read",
            found=version,
            remedy=f"It reads versions 1 to {FORMAT_VERSION}; upgrade fmscale to read a later one.",
        )
