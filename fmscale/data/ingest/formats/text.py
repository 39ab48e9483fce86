"""Text, Markdown and source code: one document a file."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, RawDocument
from fmscale.data.ingest.formats.streams import Behind, take, uncompressed

BINARY_BYTES = 8000
"""A NUL among the first 8000 bytes makes a file binary, as in git (buffer_is_binary of xdiff-interface.c)."""

STEP_BYTES = 1 << 20
"""Bytes decoded at once, to find out if they are UTF-8."""


def read(file: BinaryIO, part: FilePart) -> Iterator[RawDocument | Bad]:
    """The file's text without a byte order mark; its span is the whole file. A text before damage is no document."""
    data, damage = take(uncompressed(file, part.source), part.max_document + 1)
    if b"\0" in data[:BINARY_BYTES]:
        yield Bad("binary", "")
    elif len(data) > part.max_document:
        yield part.too_long("")
    elif damage and not isinstance(damage, Behind):
        yield Bad("broken", f"{damage}")
    elif (place := invalid(data)) >= 0:
        yield Bad("undecodable", f"byte {place}")
    else:
        yield RawDocument(data.removeprefix(codecs.BOM_UTF8), 0, len(data))
    if isinstance(damage, Behind):
        yield Bad("broken", f"{damage}")


def invalid(data: bytes) -> int:
    """Place of the first byte that is not UTF-8, or -1."""
    if data.isascii():
        return -1
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), STEP_BYTES):
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(data[start : start + STEP_BYTES], final=start + STEP_BYTES >= len(data))
        except UnicodeDecodeError as error:
            return start - kept + error.start
    return -1
