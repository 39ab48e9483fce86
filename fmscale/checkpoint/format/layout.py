"""Layout of a rank's pieces in its files, and so in the snapshot: the snapshot's memory is the files' image.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors back to back without holes
(huggingface/safetensors, format section of its README). The header is padded with spaces to whole pages, so
that what follows can be written with O_DIRECT straight from the snapshot. Wider types come first: each tensor
is then aligned to its own elements. Within a type pieces are sorted by state, so that those that lie side by
side in an optimizer's flat partition do so in the file, and are copied as one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmscale.checkpoint.format.piece import DTYPES, Piece, elements
from fmscale.errors import ConfigError

PAGE = 4096
"""Alignment of memory, file offsets and lengths that O_DIRECT takes on every block device in use."""
FILE_BYTES = 2 << 30
"""A file is closed when it has more: few files, and object stores take it in 128 parts of 16 MiB."""


class Tensor(NamedTuple):
    """A logical tensor in one of its states."""

    name: str
    state: str
    """`weight`, `exp_avg`, ..."""
    dtype: str
    """torch's name of the type."""
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return elements(self.shape) * self.item_bytes


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """A piece without its memory: what of a logical tensor."""

    tensor: Tensor
    start: int
    """First element."""
    count: int
    """Elements."""

    @property
    def nbytes(self) -> int:
        """Bytes of the range."""
        return self.count * self.tensor.item_bytes

    @property
    def key(self) -> str:
        """Name of the tensor in a safetensors file: STATE/NAME, and @START where it is not the whole. NAME alone
        without a state.
        """
        one = self.tensor
        part = "" if self.count == elements(one.shape) else f"@{self.start}"
        return f"{one.state}/{one.name}{part}" if one.state else one.name


@dataclass(frozen=True, kw_only=True)
class FileImage:
    """One file's place in the snapshot memory."""

    first: int
    """Its first piece, in the order of the layout."""
    stop: int
    """One after its last piece."""
    begin: int
    """First byte of the file's image in the memory: at a page."""
    header_bytes: int
    """Length prefix and header with padding; the tensors follow."""
    data_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class FileLayout:
    """Pieces in file order, where each lies in the memory, and the files they make. Equal only to itself: to compare
    thousands of ranges takes as long as to encode them.
    """

    order: tuple[int, ...]
    """Position in the layout -> number of the piece as it was given."""
    ranges: tuple[FileRange, ...]
    offsets: tuple[int, ...]
    """First byte of each piece in the memory."""
    files: tuple[FileImage, ...]
    memory_bytes: int
    """Size of the memory, whole pages."""


def checked(piece: Piece) -> FileRange:
    """The piece's range. Raises ConfigError for a piece that cannot be saved or restored."""
    problem = ""
    if piece.dtype not in DTYPES or f"torch.{piece.dtype}" != str(piece.tensor.dtype):
        problem = f"is said to be {piece.dtype} and is {piece.tensor.dtype}"
    elif piece.tensor.dim() != 1 or not piece.tensor.is_contiguous():
        problem = f"has the shape {tuple(piece.tensor.shape)} and strides {piece.tensor.stride()}"
    elif piece.start < 0 or piece.start + piece.count > elements(piece.shape):
        problem = f"ends at element {piece.start + piece.count} of the shape {piece.shape}"
    if problem:
        raise ConfigError(
            f"the piece of {piece.name} ({piece.state}) {problem}",
            remedy="Pieces are contiguous 1-D views of elements [start, start + numel) of their tensor.",
        )
    tensor = Tensor(piece.name, piece.state, piece.dtype, tuple(piece.shape))
    return FileRange(tensor=tensor, start=piece.start, count=piece.count)


def plan_layout(ranges: Sequence[FileRange], file_bytes: int = FILE_BYTES) -> FileLayout:
    """Sort pieces and cut them into files. A piece is never split: one larger than `file_bytes` has its own."""
    tensors = [one.tensor for one in ranges]
    order = sorted(range(len(ranges)), key=lambda i: (-tensors[i].item_bytes, tensors[i].state, tensors[i].dtype, i))
    placed = [ranges[i] for i in order]
    files: list[FileImage] = []
    offsets: list[int] = []
    first = begin = 0
    while first < len(placed):
        stop, size = first, 0
        while stop < len(placed) and (stop == first or size + placed[stop].nbytes <= file_bytes):
            size += placed[stop].nbytes
            stop += 1
        header = pages(8 + len(_header_json(placed[first:stop])))
        files.append(FileImage(first=first, stop=stop, begin=begin, header_bytes=header, data_bytes=size))
        at = begin + header
        for one in placed[first:stop]:
            offsets.append(at)
            at += one.nbytes
        first, begin = stop, pages(at)
    return FileLayout(
        order=tuple(order),
        ranges=tuple(placed),
        offsets=tuple(offsets),
        files=tuple(files),
        memory_bytes=max(begin, PAGE),
    )


def header(ranges: Iterable[FileRange], header_bytes: int) -> bytes:
    """Length prefix and header of a file that holds these pieces, padded to `header_bytes`."""
    text = _header_json(ranges)
    assert 8 + len(text) <= header_bytes, (len(text), header_bytes)
    return (header_bytes - 8).to_bytes(8, "little") + text.ljust(header_bytes - 8)


def shortest_header(ranges: Sequence[FileRange]) -> bytes:
    """As `header`, padded to 8 bytes only: for files that others read."""
    return header(ranges, 8 + -(-len(_header_json(ranges)) // 8) * 8)


def pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def _header_json(ranges: Iterable[FileRange]) -> bytes:
    tensors: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for one in ranges:
        dtype, shape = DTYPES[one.tensor.dtype][0], one.tensor.shape
        shape = shape if one.count == elements(shape) else (one.count,)
        tensors[one.key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + one.nbytes]}
        at += one.nbytes
    return json.dumps(tensors, separators=(",", ":"), ensure_ascii=False).encode()
