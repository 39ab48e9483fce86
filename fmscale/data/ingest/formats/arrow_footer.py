"""Places of the batches of an Arrow IPC file, and their rows, without reading the batches.

pyarrow must decode a batch to count its rows, and accepts a footer that leaves batches out. The footer has the place
of each batch's metadata, which begin with the number of rows. Both are flatbuffers; four of their fields are needed
(Arrow columnar format, "IPC File Format"; File.fbs, Message.fbs).
"""

import struct
from typing import BinaryIO

TRAILER_BYTES = 10
"""Length of the footer (int32) and the magic ARROW1 at the end of a file."""

BLOCK = struct.Struct("<qi4xq")
"""A Block of the footer: offset, bytes of metadata, bytes of body."""

Block = tuple[int, int, int]
"""Offset, bytes of metadata and bytes of body of a Block."""

DAMAGED = "the footer of the Arrow file is damaged"

MOST_GAP = 64
"""Most bytes between two messages, for alignment or the end mark; a batch is longer."""

MOST_ROWS = 2**40
"""Most rows of a batch, far within an int64."""


def rows_of_batches(file: BinaryIO) -> list[int]:
    """Rows of each record batch. Raises ValueError for bytes that are no Arrow file."""
    try:
        rows = [_rows(file, *block[:2]) for block in _blocks(file)[1]]
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(DAMAGED) from error
    if not all(0 <= count <= MOST_ROWS for count in rows):
        raise ValueError("a batch of the Arrow file has an impossible number of rows")
    return rows


def check_whole(file: BinaryIO) -> None:
    """Raise ValueError unless the batches of the footer fill the file between schema and footer."""
    try:
        dictionaries, batches, footer = _blocks(file)
        file.seek(8)
        marker, length = struct.unpack("<II", file.read(8))
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(DAMAGED) from error
    end = 16 + length if marker == 0xFFFFFFFF else 12 + marker
    for offset, metadata, body in [*sorted({*dictionaries, *batches}), (footer, 0, 0)]:
        if not 0 <= offset - end <= MOST_GAP:
            raise ValueError("the footer of the Arrow file does not list all that lies before it")
        end = offset + metadata + body


def _blocks(file: BinaryIO) -> tuple[list[Block], list[Block], int]:
    """Blocks of dictionaries and of batches, and the footer's begin. Raises ValueError for places outside the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - TRAILER_BYTES))
    (length,) = struct.unpack("<i", file.read(4))
    begin = size - TRAILER_BYTES - length
    if length <= 0 or begin < 0:
        raise ValueError(DAMAGED)
    file.seek(begin)
    footer = file.read(length)
    dictionaries, batches = (_listed(footer, number) for number in (2, 3))
    for offset, metadata, body in (*dictionaries, *batches):
        if offset < 0 or metadata <= 0 or body < 0 or offset + metadata + body > begin:
            raise ValueError(DAMAGED)
    return dictionaries, batches, begin


def _listed(footer: bytes, number: int) -> list[Block]:
    place = _field(footer, _unpack("<I", footer, 0), number)
    if not place:
        return []
    begin = place + _unpack("<I", footer, place)
    count = _unpack("<I", footer, begin)
    return [BLOCK.unpack_from(footer, begin + 4 + i * BLOCK.size) for i in range(count)]


def _rows(file: BinaryIO, offset: int, metadata: int) -> int:
    """`RecordBatch.length` of the message at `offset`."""
    file.seek(offset)
    message = file.read(metadata)
    # Since Arrow 0.15 a continuation marker stands before the length of the flatbuffer.
    message = message[8:] if message[:4] == b"\xff\xff\xff\xff" else message[4:]
    header = _field(message, _unpack("<I", message, 0), 2)
    batch = header + _unpack("<I", message, header)
    place = _field(message, batch, 0)
    return _unpack("<q", message, place) if place else 0


def _field(buffer: bytes, table: int, number: int) -> int:
    """Place of a table's field, or 0 if it has its default value."""
    vtable = table - _unpack("<i", buffer, table)
    size = _unpack("<H", buffer, vtable)
    slot = 4 + 2 * number
    offset = _unpack("<H", buffer, vtable + slot) if slot < size else 0
    return table + offset if offset else 0


def _unpack(kind: str, buffer: bytes, place: int) -> int:
    return int(struct.unpack_from(kind, buffer, place)[0])
