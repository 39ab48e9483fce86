"""A JSON array, plain or inside gzip or Zstandard: a document an element, read in bounded memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, Item, item_of
from fmscale.data.ingest.formats.jsonl import content_of
from fmscale.data.ingest.formats.streams import BROKEN_STREAM, take, uncompressed

CHUNK_BYTES = 1 << 20
"""Bytes taken at once while elements are small."""

ELEMENT_CHARACTERS = 64 << 20
"""A longer element ends the reading of its file: damage looks like an element without an end."""

DECODER = json.JSONDecoder()

SPACE = re.compile(r"[ \t\r\n]*")


def read(file: BinaryIO, part: FilePart) -> Iterator[Item]:
    """The text in each element's field, or the element itself if it is a text; for records each element. Spans are in
    bytes of the uncompressed file. Damage ends the reading, because the beginning of the next element is unknown.
    """
    window = _Window(uncompressed(file, part.source))
    try:
        if window.text:
            window.take("\ufeff")
        window.skip()
        if not window.take("["):
            yield Bad("broken", f"byte {window.position}: the file does not begin as an array")
            return
        first = True
        while True:
            window.skip()
            if window.take("]"):
                break
            if not first and not window.take(","):
                yield Bad("broken", f"byte {window.position}: no comma between two elements")
                return
            first = False
            window.skip()
            start = window.position
            value = window.element()
            path = [] if isinstance(value, str) and part.path else part.path
            yield item_of(content_of(value, path, start), start, window.position)
        window.skip()
        if window.text:
            yield Bad("broken", f"from byte {window.position} on: this is outside of the array")
    except UnicodeDecodeError:
        yield Bad("undecodable", f"from byte {window.position} on")
    except (*BROKEN_STREAM, ValueError, RecursionError) as error:
        yield Bad("broken", f"from byte {window.position} on: {str(error)[:200]}")


class _Window:
    """Text taken from the stream and not read yet."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begin = 0
        self._buffer = ""
        self._ended = False
        self._damage: Exception | None = None
        self.position = 0
        """Byte of the file at which the window begins."""

    @property
    def text(self) -> bool:
        """True if text is left."""
        while self._begin == len(self._buffer) and self._more():
            continue
        return self._begin < len(self._buffer)

    def skip(self) -> None:
        """Step over white space."""
        while self.text:
            space = SPACE.match(self._buffer, self._begin)
            assert space is not None, "it matches an empty text, too"
            self._advance(space.end())
            if self._begin < len(self._buffer):
                return

    def take(self, mark: str) -> bool:
        """Step over `mark` if it comes next. Raises ValueError at the end of the file."""
        if not self.text:
            raise ValueError("the file ends inside the array")
        if self._buffer[self._begin] != mark:
            return False
        self._advance(self._begin + 1)
        return True

    def element(self) -> object:
        """The next value. Raises ValueError for a missing value and for a value that is too long."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._begin)
            except ValueError:
                if len(self._buffer) - self._begin > ELEMENT_CHARACTERS or not self._more():
                    raise
                continue
            # A number at the end of the window may continue behind the window.
            if end < len(self._buffer) or not self._more():
                self._advance(end)
                return value

    def _advance(self, end: int) -> None:
        self.position += len(self._buffer[self._begin : end].encode())
        self._begin = end

    def _more(self) -> bool:
        """Double the window; False at the end of the file."""
        if self._ended:
            return False
        if self._damage:
            raise self._damage
        data, self._damage = take(self._stream, max(CHUNK_BYTES, len(self._buffer) - self._begin))
        self._ended = not data and not self._damage
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            text, self._damage, self._ended = error.object[: error.start].decode(), error, False
        self._buffer = self._buffer[self._begin :] + text
        self._begin = 0
        return not self._ended
