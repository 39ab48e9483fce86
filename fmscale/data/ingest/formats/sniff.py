"""The format of a file by its first bytes, for names that do not show the format.

Tables have their magic numbers, and a file with a NUL among its first bytes is no text. JSON Lines are lines of which
at least half are objects; a single object is a record only if it has the field (`package.json` on one line lacks it).
A file is a JSON array if all of it parses as an array, or if it is longer and begins like an array of objects, strings
or arrays: `[section]` and `[1] A reference` begin a text. Other files are guessed to be text. A name that claims
plain text decides unless the file has several lines, of which nine in ten are objects.
"""

import json
import re
from codecs import BOM_UTF8 as BOM
from typing import Any, BinaryIO

from fmscale.data.ingest.formats import compression, follow
from fmscale.data.ingest.formats.streams import take, uncompressed
from fmscale.data.ingest.formats.text import BINARY_BYTES

HEAD_BYTES = 1 << 16
"""Uncompressed bytes that decide: some hundred lines, and one cheap request to a remote store."""

LINE_BYTES = 2 << 20
"""Bytes in which the first line of objects must end; a file with a longer line is read as JSON Lines."""

STREAM = re.compile(rb"\xff\xff\xff\xff[\s\S][\s\S][\s\S]\0[\x04-\x40]\0\0\0")
"""An Arrow stream: continuation marker, length of the schema (below 16 MiB), offset of its root table."""

ELEMENT = re.compile(r'[{"\[]|null\b')
"""Begin of an array's first element; plain text does not have it behind a bracket."""

BEHIND = re.compile(r'\]\s*$|,\s*($|[{"\[\d-]|null\b|true\b|false\b)')
"""Text behind the first element: the array's end, or a comma and another value."""

OBJECT = re.compile(rb'\{\s*"')


def sniff(file: BinaryIO, source: str, field: str | None, *, plain: bool = False) -> str:
    """text, jsonl, json, parquet, arrow or binary, by the beginning of the uncompressed file. `plain`: the
    file's name claims plain text. Any object is a record if there is no field.
    """
    stream = uncompressed(file, source)
    head, _ = take(stream, HEAD_BYTES)
    if head.startswith((b"PAR1", b"ARROW1\0\0")) or STREAM.match(head):
        if compression(source):
            return "binary"
        return "parquet" if head.startswith(b"PAR1") else "arrow"
    if b"\0" in head[:BINARY_BYTES]:
        return "binary"
    begin = head.removeprefix(BOM).lstrip()
    if begin.startswith(b"[") and not plain:
        return "json" if _is_array(begin, len(head) < HEAD_BYTES) else "text"
    if not begin.startswith(b"{"):
        return "text"
    ended = len(head) < HEAD_BYTES
    while b"\n" not in begin and not ended and len(begin) < LINE_BYTES:
        more, _ = take(stream, len(begin))
        ended = len(more) < len(begin)
        begin += more
    return "jsonl" if _are_lines(begin, ended, field, plain) else "text"


def _are_lines(begin: bytes, ended: bool, field: str | None, plain: bool) -> bool:
    lines = begin.split(b"\n")
    if not ended and len(lines) == 1:
        return not plain and bool(OBJECT.match(begin))
    if not ended:
        lines.pop()
    values = [_parse(line) for line in lines if line.strip()]
    if len(values) == 1:
        return not plain and _has(values[0], field)
    if plain and values[-1] is None and lines[-1].strip():
        values.pop()  # a copy that was cut may end inside a line
    objects = sum(isinstance(value, dict) for value in values)
    return len(values) > 1 and (10 * objects >= 9 * len(values) if plain else 2 * objects >= len(values))


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _has(value: Any, field: str | None) -> bool:
    if field is None:
        return isinstance(value, dict)
    try:
        follow(value, field)
    except KeyError:
        return False
    return True


def _is_array(begin: bytes, ended: bool) -> bool:
    """True if the text is an array or begins as an array; False for lines of one array each."""
    if ended and isinstance(_parse(begin), list):
        return True
    first, _, more = begin.partition(b"\n")
    if more.strip() and isinstance(_parse(first), list):
        return False
    text = begin[1:].lstrip().decode(errors="ignore")
    if not ELEMENT.match(text):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # The first element continues behind these bytes.
        return not ended or bool(OBJECT.match(text.encode()))
    behind = text[end:].strip()
    return not behind or bool(BEHIND.match(behind))
