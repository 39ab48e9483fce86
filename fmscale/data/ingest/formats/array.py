"""A JSON array, plain or inside gzip or Zstandard: a document an element, read in bounded memory."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, Item, item_of
from fmscale.data.ingest.formats.jsonl import content_of, longest
from fmscale.data.ingest.formats.streams import BROKEN_STREAM, take, uncompressed

CHUNK_BYTES = 1 << 20
"""Bytes taken at once while elements are small."""

DECODER = json.JSONDecoder(parse_int=float)

SPACE = re.compile(r"[ \t\r\n]*")

STRING = re.compile(r'[^"\\]*+(?:\\[\s\S][^"\\]*+)*+')
"""A string up to its quote, or up to the end of the window or a backslash there."""

OUTSIDE = re.compile(r'[^"\[\]{},]*+')
"""Anything that neither begins or ends a value nor separates two."""


def read(file: BinaryIO, part: FilePart) -> Iterator[Item]:
    """The text in each element's field, or the element itself if it is a text; for records each element. Spans are in
    bytes of the uncompressed file. Damage ends the reading, because the beginning of the next element is unknown.
    """
    window = _Window(uncompressed(file, part.source))
    try:
        if window.text:
            window.take(BOM_UTF8.decode("latin-1"))
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
            data = window.element(longest(part))
            if data is None:
                window.pass_over()
                yield part.too_long(f"byte {start}")
                continue
            content = content_of(data, part, start, element=True)
            del data
            assert content is not None, "an element is no blank line"
            yield item_of(content, start, window.position)
            del content
        window.skip()
        if window.text:
            yield Bad("broken", f"from byte {window.position} on: this is outside of the array")
    except (*BROKEN_STREAM, ValueError, RecursionError) as error:
        yield Bad("broken", f"from byte {window.position} on: {str(error)[:200]}")


class _Window:
    """Bytes taken from the stream and not read yet, as Latin-1: a sign of JSON is a byte there, too."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
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
            self._step(SPACE)
            if self._begin < len(self._buffer):
                return

    def take(self, mark: str) -> bool:
        """Step over `mark` if it comes next. Raises ValueError at the end of the file."""
        if not self.text:
            raise ValueError("the file ends inside the array")
        while len(self._buffer) - self._begin < len(mark) and self._more():
            continue
        if not self._buffer.startswith(mark, self._begin):
            return False
        self._advance(self._begin + len(mark))
        return True

    def element(self, most: int) -> bytes | None:
        """The bytes of the next value, or None if it has more than `most`. Raises ValueError for a missing value."""
        while True:
            try:
                _, end = DECODER.raw_decode(self._buffer, self._begin)
            except ValueError:
                if len(self._buffer) - self._begin > most:
                    return None
                if not self._more():
                    raise
                continue
            # A number at the end of the window may continue behind the window.
            if end < len(self._buffer) or not self._more():
                data = self._buffer[self._begin : end].encode("latin-1")
                self._advance(end)
                return data

    def pass_over(self) -> None:
        """Step over a value without keeping it. Raises ValueError at the end of the file."""
        depth = 0
        while self.text:
            self._step(OUTSIDE)
            mark = self._buffer[self._begin : self._begin + 1]
            if mark in ("]", "}", ",") and not depth:
                return
            self._advance(self._begin + len(mark))
            depth += (mark in ("[", "{")) - (mark in ("]", "}"))
            if mark == '"':
                self._pass_string()
        raise ValueError("the file ends inside the array")

    def _pass_string(self) -> None:
        while self.text:
            self._step(STRING)
            if self._buffer.startswith('"', self._begin):
                self._advance(self._begin + 1)
                return
            if self._buffer.startswith("\\", self._begin) and not self._more():
                return

    def _step(self, pattern: re.Pattern[str]) -> None:
        """Step over the match, which may be empty."""
        match = pattern.match(self._buffer, self._begin)
        assert match is not None, "all patterns match an empty text, too"
        self._advance(match.end())

    def _advance(self, end: int) -> None:
        self.position += end - self._begin
        self._begin = end

    def _more(self) -> bool:
        """Double the window; False at the end of the file."""
        if self._ended:
            return False
        if self._damage:
            raise self._damage
        left = len(self._buffer) - self._begin
        data, self._damage = take(self._stream, max(CHUNK_BYTES, left))
        self._ended = not data and not self._damage
        self._buffer = self._buffer[self._begin :] + data.decode("latin-1")
        self._begin = 0
        return not self._ended
