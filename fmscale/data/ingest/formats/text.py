"""Text, Markdown and source code: one document a file."""

from collections.abc import Iterator
from typing import BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, RawDocument
from fmscale.data.ingest.formats.streams import BROKEN_STREAM, uncompressed

BINARY_BYTES = 8000
"""A NUL among the first 8000 bytes makes a file binary, as in git (buffer_is_binary of xdiff-interface.c)."""


def read(file: BinaryIO, part: FilePart) -> Iterator[RawDocument | Bad]:
    """The file's text without a byte order mark; its span is the whole file."""
    try:
        data = uncompressed(file, part.source).read()
    except BROKEN_STREAM as error:
        yield Bad("broken", f"{error}")
        return
    if b"\0" in data[:BINARY_BYTES]:
        yield Bad("binary", "")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Bad("undecodable", f"byte {error.start}")
        return
    yield RawDocument(text, 0, len(data))
