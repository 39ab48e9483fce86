"""JSONL: a JSON object a line, plain or inside gzip or Zstandard."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, Item, item_of
from fmscale.data.ingest.formats.streams import BROKEN_STREAM, uncompressed

BOM = b"\xef\xbb\xbf"


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
            position += len(stream.readline()) - 1
    while stop is None or position < stop:
        try:
            line = stream.readline()
        except BROKEN_STREAM as error:
            yield Bad("broken", f"byte {position}, to the end of the file: {error}")
            return
        if not line:
            return
        content = _parse(line.removeprefix(BOM) if position == 0 else line, part.path, position)
        if content is not None:
            yield item_of(content, position, position + len(line))
        position += len(line)


def _parse(line: bytes, path: list[str] | None, position: int) -> str | dict[str, Any] | Bad | None:
    """The line's text or object, the reason for its lack, or None for a blank line."""
    if line.isspace() or not line:
        return None
    try:
        value: Any = json.loads(line.decode())
    except UnicodeDecodeError:
        return Bad("undecodable", f"byte {position}")
    except (ValueError, RecursionError) as error:
        return Bad("broken", f"byte {position}: {type(error).__name__}: {error}")
    if isinstance(value, list):
        return Bad("broken", f"byte {position}: an array; --format json reads a file that is an array")
    return content_of(value, path, position)


def content_of(value: Any, path: list[str] | None, position: int) -> str | dict[str, Any] | Bad:
    """The text at a path in a record, or without a path the record; or the reason for its lack."""
    if path is None:
        if not isinstance(value, dict):
            return Bad("broken", f"byte {position}: {type(value).__name__} and not an object with columns")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Bad("undecodable", f"byte {position}: half of a surrogate pair")
        return value
    try:
        for name in path:
            value = value[name]
    except (KeyError, TypeError, IndexError):
        return Bad("broken", f"byte {position}: no field {'.'.join(path)}")
    if value is None:
        return Bad("empty", f"byte {position}")
    if not isinstance(value, str):
        return Bad("broken", f"byte {position}: {'.'.join(path)} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Bad("undecodable", f"byte {position}: half of a surrogate pair")
    return value
