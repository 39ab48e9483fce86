"""The format of a file by its first bytes, for names that do not tell.

Tables have their magic numbers, and a NUL among the first bytes is no text. JSON Lines are lines of which at
least half are objects; one object alone is a record only if it has the field, as `package.json` on one line is
none. An array is one of objects or of strings: `[1]` begins a list of references and `[section]` a text. All
else is text, by a guess. A name that says plain text is believed unless there are several lines, and all of
them are objects.
"""

import json
import re
from typing import Any, BinaryIO

from fmscale.data.ingest.formats import compression
from fmscale.data.ingest.formats.streams import take, uncompressed
from fmscale.data.ingest.formats.text import BINARY_BYTES

HEAD_BYTES = 1 << 16
"""Uncompressed bytes that are looked at: some hundred lines, and one cheap request to a remote store."""

LINE_BYTES = 2 << 20
"""Bytes in which the first line of objects must end; a longer one is taken for JSON Lines, and read as such."""

BOM = b"\xef\xbb\xbf"

STREAM = re.compile(rb"\xff\xff\xff\xff[\s\S][\s\S][\s\S]\0[\x04-\x40]\0\0\0")
"""An Arrow stream: continuation marker, length of the schema (below 16 MiB), offset of its root table."""

OBJECT = re.compile(rb'\{\s*"')


def sniff(file: BinaryIO, source: str, field: str, *, plain: bool = False) -> str:
    """text, jsonl, json, parquet, arrow or binary, by the file's beginning behind its compression. `plain`: its name
    says that it is text.
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
        return "json" if _is_array(begin[1:].lstrip()) else "text"
    if not begin.startswith(b"{"):
        return "text"
    ended = len(head) < HEAD_BYTES
    while b"\n" not in begin and not ended and len(begin) < LINE_BYTES:
        more, _ = take(stream, len(begin))
        ended = len(more) < len(begin)
        begin += more
    return "jsonl" if _are_lines(begin, ended, field.split("."), plain) else "text"


def _are_lines(begin: bytes, ended: bool, path: list[str], plain: bool) -> bool:
    lines = begin.split(b"\n")
    if not ended and len(lines) == 1:
        return not plain and bool(OBJECT.match(begin))
    if not ended:
        lines.pop()
    values = [_parse(line) for line in lines if line.strip()]
    if len(values) == 1:
        return not plain and _has(values[0], path)
    objects = sum(isinstance(value, dict) for value in values)
    return objects == len(values) if plain else 2 * objects >= len(values)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _has(value: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _is_array(rest: bytes) -> bool:
    """Whether what stands behind the bracket is a first element and what follows one, or the begin of one."""
    if rest[:1] not in (b"{", b'"'):
        return False
    text = rest.decode(errors="ignore")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return bool(OBJECT.match(rest))
    behind = text[end:].strip()
    return behind in ("", "]") or behind.startswith(",")
