"""JSONL: a JSON object a line, plain or inside gzip or Zstandard."""

import json
import re
from codecs import BOM_UTF8 as BOM
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, Item, follow, item_of
from fmscale.data.ingest.formats.streams import BROKEN_STREAM, BUFFER_BYTES, uncompressed
from fmscale.data.ingest.formats.text import invalid

VALUE = re.compile(rb'[\[{,]|"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
"""Signs of JSON behind which a value may begin, and texts, to be stepped over."""

VALUE_BYTES = 256
"""Memory of a small value, at most: an object of one member in an array."""

DECODER = json.JSONDecoder()
TEXT = json.JSONDecoder(parse_int=float)
"""Decoders for records and texts. The numbers beside a text do not matter, and Python refuses ints of 4301 digits."""


def read(file: BinaryIO, part: FilePart) -> Iterator[Item]:
    """The text in each line's field, or each line's object; blank lines are passed over. A line belongs to the part in
    which its first byte lies; its span is in bytes of the uncompressed file.
    """
    stream = uncompressed(file, part.source)
    position, stop = 0, None
    if part.of > 1:
        size = file.seek(0, 2)
        position, stop = size * part.index // part.of, size * (part.index + 1) // part.of
        file.seek(max(0, position - 1))
        if position:
            # The line with the byte before `position` belongs to an earlier part.
            position += sum(map(len, _rest(stream))) - 1
    most = longest(part)
    try:
        while stop is None or position < stop:
            line = stream.readline(most + 1)
            if not line:
                return
            start, size = position, len(line)
            position += size
            if size > most and not line.endswith(b"\n"):
                del line
                yield part.too_long(f"byte {start}")
                for more in _rest(stream):
                    position += len(more)
                continue
            content = content_of(line if start else line.removeprefix(BOM), part, start)
            del line
            if content is not None:
                yield item_of(content, start, position)
            del content
    except BROKEN_STREAM as error:
        yield Bad("broken", f"byte {position}, to the end of the file: {error}")


def _rest(stream: BinaryIO) -> Iterator[bytes]:
    """The pieces of a line up to its end."""
    while piece := stream.readline(BUFFER_BYTES):
        yield piece
        if piece.endswith(b"\n"):
            return


def longest(part: FilePart) -> int:
    """Bytes of the longest JSON that may hold a document; escapes take half of a text's bytes more at most, mostly."""
    return part.max_document if part.field is None else part.max_document * 3 // 2


def content_of(
    data: bytes, part: FilePart, position: int, *, element: bool = False
) -> bytes | dict[str, Any] | Bad | None:
    """The text or object in a line, or in an `element` of an array; the reason for its lack; None for a blank line."""
    large = len(data) > part.max_document // 8
    value: Any = None
    if not large and part.field is not None:
        try:
            value = TEXT.decode(data.decode())
            if type(value) is dict and type(text := value.get(part.field)) is str:
                return text.encode()
        except (ValueError, RecursionError):
            pass  # told apart below
    where = f"byte {position}"
    if data.isspace():
        return None
    if large and _many(data, 2 * part.max_document // VALUE_BYTES):
        return Bad("long", f"{where}: more values than memory for {part.max_document} bytes holds")
    if large and (place := invalid(data)) >= 0:
        return Bad("undecodable", f"byte {position + place}")
    # As Latin-1 a large text takes a byte of memory for each byte, without Unicode's 4 for a sign outside of the BMP.
    code = "latin-1" if large and part.field and b"\\u" not in data else "utf-8"
    try:
        if value is None:
            value = (DECODER if part.field is None else TEXT).decode(data.decode(code))
    except UnicodeDecodeError:
        return Bad("undecodable", where)
    except (ValueError, RecursionError) as error:
        return Bad("broken", f"{where}: {type(error).__name__}: {error}")
    if part.field is None:
        return _record(value, where, escapes=b"\\u" in data)
    if isinstance(value, list) and not element:
        return Bad("broken", f"{where}: an array; --format json reads a file that is an array")
    return _text(value, part, where, code, element=element)


def _many(data: bytes, most: int) -> bool:
    signs = (1 for match in VALUE.finditer(data) if match.end() - match.start() == 1)
    return next(islice(signs, most, None), None) is not None


def _record(value: Any, where: str, *, escapes: bool) -> dict[str, Any] | Bad:
    if not isinstance(value, dict):
        return Bad("broken", f"{where}: {type(value).__name__} and not an object with columns")
    try:
        if escapes:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Bad("undecodable", f"{where}: half of a surrogate pair")
    return value


def _text(value: Any, part: FilePart, where: str, code: str, *, element: bool) -> bytes | Bad:
    assert part.field is not None, "records have no text"
    if not (element and isinstance(value, str)):
        try:
            value = follow(value, part.field.encode().decode(code))
        except KeyError:
            return Bad("broken", f"{where}: no field {part.field}")
    if value is None:
        return Bad("empty", where)
    if not isinstance(value, str):
        return Bad("broken", f"{where}: {part.field} is {type(value).__name__}, not text")
    try:
        data = value.encode(code)
    except UnicodeEncodeError:
        return Bad("undecodable", f"{where}: half of a surrogate pair")
    return data if len(data) <= part.max_document else part.too_long(where)
