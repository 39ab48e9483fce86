"""Layout of a rank's pieces in its files, and so in the snapshot: the snapshot's memory is the files' image.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors back to back without holes
(huggingface/safetensors, format section of its README). The header is padded with spaces to whole pages, so
that what follows can be written with O_DIRECT straight from the snapshot. Wider types come first: each tensor
is then aligned to its own elements. Within a type pieces are sorted by state, so that those that lie side by
side in an optimizer's flat partition do so in the file, and are copied as one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmscale.checkpoint.format.piece import DTYPES, elements

PAGE = 4096
"""Alignment of memory, file offsets and lengths that O_DIRECT takes on every block device in use."""
FILE_BYTES = 2 << 30
"""A file is closed when it has more: few files, and object stores take it in 128 parts of 16 MiB."""


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """A piece without its memory: what of a logical tensor, and of which type."""

    name: str
    state: str
    dtype: str
    """torch's name of the type."""
    shape: tuple[int, ...]
    start: int
    """First element."""
    count: int
    """Elements."""

    @property
    def nbytes(self) -> int:
        """Bytes of the range."""
        return self.count * DTYPES[self.dtype][1]

    @property
    def key(self) -> str:
        """Name of the tensor in a safetensors file: STATE/NAME, and @START where it is not the whole. NAME alone
        without a state.
        """
        part = "" if self.count == elements(self.shape) else f"@{self.start}"
        return f"{self.state}/{self.name}{part}" if self.state else self.name


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


def plan_layout(ranges: Sequence[FileRange], file_bytes: int = FILE_BYTES) -> FileLayout:
    """Sort pieces and cut them into files. A piece is never split: one larger than `file_bytes` has its own."""
    order = sorted(range(len(ranges)), key=lambda i: (-DTYPES[ranges[i].dtype][1], ranges[i].state, ranges[i].dtype, i))
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


def tensor_table(ranges: Sequence[FileRange]) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Tensors of the ranges for JSON, each once; and the number of each range's tensor among them."""
    keys = [(one.name, one.state, one.dtype, one.shape) for one in ranges]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return list(numbers), [numbers[key] for key in keys]


def ranges_of(table: Iterable[Sequence[Any]], columns: Mapping[str, Sequence[int]]) -> Iterator[FileRange]:
    """The ranges of a `tensor_table`, from the columns `tensor`, `start` and `count`."""
    tensors = [(name, state, dtype, tuple(shape)) for name, state, dtype, shape in table]
    for number, start, count in zip(columns["tensor"], columns["start"], columns["count"], strict=True):
        name, state, dtype, shape = tensors[number]
        yield FileRange(name=name, state=state, dtype=dtype, shape=shape, start=start, count=count)


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
        shape = list(one.shape) if one.count == elements(one.shape) else [one.count]
        tensors[one.key] = {"dtype": DTYPES[one.dtype][0], "shape": shape, "data_offsets": [at, at + one.nbytes]}
        at += one.nbytes
    return json.dumps(tensors, separators=(",", ":"), ensure_ascii=False).encode()
