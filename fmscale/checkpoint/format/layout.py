"""Layout of a rank's pieces in its files and in the snapshot, whose memory is an image of the files.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors back to back without holes
(huggingface/safetensors, format section of its README). The header is padded with spaces to whole pages, so
that the tensors can be written with O_DIRECT straight from the snapshot. Wider types come first: each tensor
is then aligned to its own elements. Within a type pieces are sorted by state: neighbours in an optimizer's flat
partition are then neighbours in the file, and one copy takes them together.
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
"""Most bytes in a file of several pieces: files stay few, and an object store takes a file in 128 parts of 16 MiB."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRange:
    """A piece without its memory: a range of a logical tensor."""

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
        """Name of the range in a safetensors file: STATE/NAME, followed by @START if it is not the whole tensor; NAME
        alone for a tensor without a state.
        """
        tensor = self.tensor
        part = "" if self.count == elements(tensor.shape) else f"@{self.start}"
        return f"{tensor.state}/{tensor.name}{part}" if tensor.state else tensor.name


@dataclass(frozen=True, kw_only=True)
class FileImage:
    """One file's place in the snapshot memory."""

    first: int
    """Index of the file's first piece in the layout."""
    stop: int
    """Index after the file's last piece."""
    begin: int
    """First byte of the file's image in the memory, at the beginning of a page."""
    header_bytes: int
    """Length prefix and header with padding; the tensors follow."""
    data_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class FileLayout:
    """Pieces in file order, their places in the memory, and their files. A layout equals only itself, because comparing
    thousands of ranges takes as long as encoding them.
    """

    order: tuple[int, ...]
    """Position in the layout -> position of the piece in the input."""
    ranges: tuple[FileRange, ...]
    offsets: tuple[int, ...]
    """First byte of each piece in the memory."""
    files: tuple[FileImage, ...]
    memory_bytes: int
    """Size of the memory, whole pages."""


def checked(piece: Piece) -> FileRange:
    """Check a piece and return its range. Raises ConfigError for a piece that cannot be saved or restored."""
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
    """Sort pieces and group them into files. A piece is never split: a piece above `file_bytes` has its own file."""
    tensors = [piece.tensor for piece in ranges]
    order = sorted(range(len(ranges)), key=lambda i: (-tensors[i].item_bytes, tensors[i].state, tensors[i].dtype, i))
    pieces = [ranges[i] for i in order]
    files: list[FileImage] = []
    offsets: list[int] = []
    first = begin = 0
    while first < len(pieces):
        stop, size = first, 0
        while stop < len(pieces) and (stop == first or size + pieces[stop].nbytes <= file_bytes):
            size += pieces[stop].nbytes
            stop += 1
        header = pages(8 + len(_header_json(pieces[first:stop])))
        files.append(FileImage(first=first, stop=stop, begin=begin, header_bytes=header, data_bytes=size))
        at = begin + header
        for piece in pieces[first:stop]:
            offsets.append(at)
            at += piece.nbytes
        first, begin = stop, pages(at)
    return FileLayout(
        order=tuple(order),
        ranges=tuple(pieces),
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
    """Length prefix and header, padded only to 8 bytes: for exported files."""
    return header(ranges, 8 + -(-len(_header_json(ranges)) // 8) * 8)


def pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def _header_json(ranges: Iterable[FileRange]) -> bytes:
    tensors: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in ranges:
        dtype, shape = DTYPES[piece.tensor.dtype][0], piece.tensor.shape
        shape = shape if piece.count == elements(shape) else (piece.count,)
        tensors[piece.key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + piece.nbytes]}
        at += piece.nbytes
    return json.dumps(tensors, separators=(",", ":"), ensure_ascii=False).encode()
