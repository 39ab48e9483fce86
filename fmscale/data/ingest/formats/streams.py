"""The uncompressed bytes of a file."""

import gzip
import io
import zlib
from typing import BinaryIO, cast

import zstandard

from fmscale.data.ingest.formats import compression

BROKEN_STREAM = (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)
"""Errors of reading a damaged or cut compressed file."""

BUFFER_BYTES = 1 << 20
"""Uncompressed bytes held while lines are found."""

COMPRESSED_BYTES = 1 << 17
"""Compressed bytes of a read: at a usual factor of 4, half a MiB of text."""


def uncompressed(file: BinaryIO, source: str) -> BinaryIO:
    """The file itself, or a buffered stream of the content of its gzip or Zstandard frames."""
    match compression(source):
        case "gzip":
            return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), BUFFER_BYTES))
        case "zstd":
            return cast(BinaryIO, io.BufferedReader(ZstdFile(file), BUFFER_BYTES))
        case _:
            return file


def take(stream: BinaryIO, size: int) -> tuple[bytes, Exception | None]:
    """The next `size` bytes, or fewer before the end or before damage; and the error of the damage, or None."""
    parts: list[bytes] = []
    while size:
        try:
            part = cast(io.BufferedIOBase, stream).read1(size)
        except BROKEN_STREAM as error:
            return b"".join(parts), error
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts), None


class ZstdFile(io.RawIOBase):
    """The content of all frames of a file; a caller can read it once.

    At the end of a cut file the library's own stream just ends; this stream raises EOFError.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer or a part of it; 0 at the end of the last frame. Raises EOFError inside a frame."""
        while not self._ready and self._decompress():
            continue
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bool:
        """Take the next compressed bytes. False at the end."""
        data = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
        data = data or self._file.read(COMPRESSED_BYTES)
        if not data:
            if self._begun:
                raise EOFError("the file ends inside a Zstandard frame")
            return False
        self._begun = True
        self._ready = memoryview(self._frame.decompress(data))
        return True
