"""The uncompressed bytes of a file."""

import gzip
import io
import zlib
from typing import BinaryIO, cast

import zstandard

from fmscale.data.ingest.formats import compression

BROKEN_STREAM = (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)
"""What reading a damaged or cut compressed file raises."""

BUFFER_BYTES = 1 << 20
"""Uncompressed bytes held while lines are found."""


def uncompressed(file: BinaryIO, source: str) -> BinaryIO:
    """The file itself, or a buffered stream of what its gzip or Zstandard frames hold."""
    match compression(source):
        case "gzip":
            return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), BUFFER_BYTES))
        case "zstd":
            stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            return cast(BinaryIO, io.BufferedReader(stream, BUFFER_BYTES))
        case _:
            return file
