"""The uncompressed bytes of a file."""

import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import zstandard

from fmscale.data.ingest.formats import compression


class Behind(ValueError):
    """Bytes behind the last whole frame begin no other frame."""


BROKEN_STREAM = (zlib.error, EOFError, zstandard.ZstdError, Behind)
"""Errors of reading a damaged or cut compressed file."""

BUFFER_BYTES = 1 << 20
"""Uncompressed bytes held while lines are found, and most bytes of a step of gzip."""

COMPRESSED_BYTES = 1 << 17
"""Compressed bytes of a read: at a usual factor of 4, half a MiB of text."""

GZIP_WINDOW, GZIP_MAGIC = 31, b"\x1f\x8b"
"""zlib's window bits for gzip members, and their begin."""

ZSTD_MAGIC, SKIPPABLE = 0xFD2FB528, 0x184D2A5
"""Begin of a Zstandard frame, and of a skippable frame without its last digit (RFC 8878)."""


def uncompressed(file: BinaryIO, source: str) -> BinaryIO:
    """The file itself, or a buffered stream of the content of its gzip members or Zstandard frames.

    The stream gives all bytes before damage, then raises one of BROKEN_STREAM.
    """
    kind = compression(source)
    if not kind:
        return file
    chunks = _gzip(file) if kind == "gzip" else _zstd(file)
    return cast(BinaryIO, io.BufferedReader(_Chunks(chunks), BUFFER_BYTES))


def take(stream: BinaryIO, size: int) -> tuple[bytes, Exception | None]:
    """The next `size` bytes, or fewer before the end or before damage; and the error of the damage, or None."""
    data = bytearray()
    while len(data) < size:
        try:
            part = cast(io.BufferedIOBase, stream).read1(min(size - len(data), BUFFER_BYTES))
        except BROKEN_STREAM as error:
            return bytes(data), error
        if not part:
            break
        data += part
    return bytes(data), None


class _Chunks(io.RawIOBase):
    """The bytes of an iterator."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer or a part of it; 0 at the end."""
        while not self._ready and (chunk := next(self._chunks, None)) is not None:
            self._ready = memoryview(chunk)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    """The content of all members in steps of BUFFER_BYTES. Zeros may stand behind a member: tapes and tools pad so."""
    data, whole = b"", False
    while data := (data.lstrip(b"\0") if whole else data) or file.read(COMPRESSED_BYTES):
        if whole and data[0] == 0:
            continue
        if whole and not GZIP_MAGIC.startswith(data[:2]):
            raise Behind("the bytes behind the last whole member are no gzip")
        member = zlib.decompressobj(GZIP_WINDOW)
        while not member.eof:
            data = data or file.read(COMPRESSED_BYTES)
            if not data:
                raise EOFError("the file ends inside a gzip member")
            yield from _inflate(member, data)
            data = member.unconsumed_tail
        data, whole = member.unused_data, True


def _inflate(member: Any, data: bytes) -> Iterator[bytes]:
    """The next bytes of a member. Raises zlib.error after the last byte before damage."""
    before = member.copy()
    try:
        yield member.decompress(data, BUFFER_BYTES)
    except zlib.error:
        # The library discards the output of a call that fails.
        for place in range(len(data)):
            yield before.decompress(data[place : place + 1])
        raise


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """The content of all frames, a block (128 KiB) at once: 128 KiB of blocks of a repeated byte are 4 GiB."""
    whole = False
    while start := file.read(4):
        magic = int.from_bytes(start, "little")
        if magic >> 4 == SKIPPABLE:
            left = int.from_bytes(_exactly(file, 4), "little")
            while left:
                left -= len(_exactly(file, min(left, BUFFER_BYTES)))
        elif magic == ZSTD_MAGIC:
            yield from _frame(file, start)
        else:
            raise (
                Behind("the bytes behind the last whole frame are no Zstandard")
                if whole
                else zstandard.ZstdError("the file does not begin with a Zstandard frame")
            )
        whole = True


def _frame(file: BinaryIO, start: bytes) -> Iterator[bytes]:
    """The blocks of a frame (RFC 8878, section 3.1.1)."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    flags = _exactly(file, 1)
    size, single, checksum, dictionary = flags[0] >> 6, flags[0] >> 5 & 1, flags[0] >> 2 & 1, flags[0] & 3
    rest = 1 - single + (0, 1, 2, 4)[dictionary] + (single, 2, 4, 8)[size]
    frame.decompress(start + flags + _exactly(file, rest))
    last = False
    while not last:
        head = _exactly(file, 3)
        block = int.from_bytes(head, "little")
        last, repeated = bool(block & 1), block >> 1 & 3 == 1
        yield frame.decompress(head + _exactly(file, 1 if repeated else block >> 3))
    if checksum:
        yield frame.decompress(_exactly(file, 4))


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("the file ends inside a Zstandard frame")
    return data
