"""How many rows each record batch of an Arrow IPC file has, without reading the batches.

pyarrow tells a batch's rows only by decoding it. The footer says where each batch's metadata lies, and that
begins with the rows; both are flatbuffers, of which three fields are needed (Arrow columnar format, "IPC File
Format"; File.fbs, Message.fbs).
"""

import struct
from typing import BinaryIO

TRAILER_BYTES = 10
"""Length of the footer (int32) and the magic ARROW1 at the end of a file."""

BLOCK = struct.Struct("<qi4xq")
"""A Block of the footer: offset, bytes of metadata, bytes of body."""

MOST_ROWS = 2**40
"""No batch has more rows: their numbers stay far within an int64."""


def rows_of_batches(file: BinaryIO) -> list[int]:
    """Rows of each record batch. Raises ValueError for what is no Arrow file."""
    try:
        rows = [_rows(file, *block[:2]) for block in _blocks(file)]
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("the footer of the Arrow file is damaged") from error
    if not all(0 <= count <= MOST_ROWS for count in rows):
        raise ValueError("a batch of the Arrow file has an impossible number of rows")
    return rows


def _blocks(file: BinaryIO) -> list[tuple[int, int, int]]:
    file.seek(-TRAILER_BYTES, 2)
    (length,) = struct.unpack("<i", file.read(4))
    file.seek(-TRAILER_BYTES - length, 2)
    footer = file.read(length)
    place = _field(footer, _root(footer), 3)
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
    header = _field(message, _root(message), 2)
    batch = header + _unpack("<I", message, header)
    place = _field(message, batch, 0)
    return _unpack("<q", message, place) if place else 0


def _root(buffer: bytes) -> int:
    return _unpack("<I", buffer, 0)


def _field(buffer: bytes, table: int, number: int) -> int:
    """Place of a table's field, or 0 if it has its default value."""
    vtable = table - _unpack("<i", buffer, table)
    size = _unpack("<H", buffer, vtable)
    slot = 4 + 2 * number
    offset = _unpack("<H", buffer, vtable + slot) if slot < size else 0
    return table + offset if offset else 0


def _unpack(kind: str, buffer: bytes, place: int) -> int:
    return int(struct.unpack_from(kind, buffer, place)[0])
