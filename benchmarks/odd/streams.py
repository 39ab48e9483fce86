"""Cases of compression: members, damage, lengths and names."""

import gzip
import io
import lzma
import struct
import tarfile
import zlib
from bz2 import compress as bzip2
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import zstandard

from benchmarks.odd import plain
from benchmarks.odd.case import ANY, Case, Reader, anything, file
from benchmarks.odd.lines import BOM, OBJECTS, THREE, many, rows

LONG = many(2000)


def gz(data: bytes) -> bytes:
    """A member of gzip, the same each time."""
    return gzip.compress(data, mtime=0)


def zst(data: bytes, **options: Any) -> bytes:
    """A frame of Zstandard."""
    return zstandard.ZstdCompressor(**options).compress(data)


def blocks(data: bytes) -> bytes:
    """A frame of many blocks and without its length, as a stream writes it."""
    machine = zstandard.ZstdCompressor().compressobj()
    parts = [
        machine.compress(data[begin : begin + 2000]) + machine.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for begin in range(0, len(data), 2000)
    ]
    return b"".join(parts) + machine.flush()


def changed(data: bytes, place: int) -> bytes:
    """The bytes with one of them inverted."""
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def named(data: bytes) -> bytes:
    """A member with an extra field, a file name and a comment in its header."""
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = body.compress(data) + body.flush()
    header = b"\x1f\x8b\x08\x1c" + bytes(6) + struct.pack("<H", 5) + b"extra" + b"name.jsonl\0" + b"comment\0"
    return header + packed + struct.pack("<II", zlib.crc32(data), len(data))


def tarred(data: bytes) -> bytes:
    """A tar with one file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def packed(name: str, path: str, data: bytes, reader: Reader | None = None, **left_out: int) -> Case:
    """A case of compression."""
    return file("compression", name, path, data, reader, **left_out)


Pack = Callable[[bytes], bytes]


def both(name: str, make: Callable[[Pack], bytes], **left_out: int) -> list[Case]:
    """The same damage behind gzip and behind Zstandard."""
    return [
        packed(f"gz: {name}", "a.jsonl.gz", make(gz), plain.gz_lines, **left_out),
        packed(f"zst: {name}", "a.jsonl.zst", make(blocks), plain.zst_lines, **left_out),
    ]


STREAMS = [
    *both("whole", lambda pack: pack(LONG)),
    *both("several members", lambda pack: pack(LONG[:70_001]) + pack(b"") + pack(LONG[70_001:])),
    *both("a thousand members", lambda pack: b"".join(pack(LONG[i : i + 200]) for i in range(0, len(LONG), 200))),
    *both("garbage behind the end", lambda pack: pack(LONG) + b"garbage" * 9, broken=1),
    *both("cut in the middle", lambda pack: pack(LONG)[: len(pack(LONG)) // 2], broken=1),
    *both("cut in the last bytes", lambda pack: pack(LONG)[:-3], broken=1),
    *both("cut in the second member", lambda pack: pack(LONG) + pack(LONG)[:300], broken=1),
    *both("cut in the header", lambda pack: pack(LONG)[:5], broken=1),
    *both("a byte changed in the middle", lambda pack: changed(pack(LONG), len(pack(LONG)) // 2), broken=ANY),
    *both("a byte changed in the second member", lambda pack: pack(LONG) + changed(pack(LONG), 2000), broken=ANY),
    *both("0 bytes", lambda pack: b"", empty=1),
    *both("nothing inside", lambda pack: pack(b""), empty=1),
    *both("not compressed", lambda pack: LONG, broken=1),
    packed("gz: changed checksum", "a.jsonl.gz", changed(gz(LONG), -8), plain.gz_lines, broken=1),
    packed("gz: changed length", "a.jsonl.gz", changed(gz(LONG), -1), plain.gz_lines, broken=1),
    packed("gz: zeros behind the end", "a.jsonl.gz", gz(LONG) + bytes(512), lambda _: plain_lines(LONG)),
    packed("gz: name, comment and extra field", "a.jsonl.gz", named(LONG), plain.gz_lines),
    packed("gz: stored without compression", "a.jsonl.gz", gzip.compress(LONG, 0, mtime=0), plain.gz_lines),
    packed("gz: byte order mark", "a.jsonl.gz", gz(BOM + THREE), plain.gz_lines),
    packed("gz: text", "a.txt.gz", gz(b"text\r\n"), plain.gz_text),
    packed("gz: text, cut", "a.txt.gz", gz(b"prose\n" * 9999)[:-20], None, broken=1),
    packed("gz: Latin-1", "a.txt.gz", gz("caf\xe9".encode("latin-1")), None, undecodable=1),
    packed("gz: extension in capitals", "A.JSONL.GZ", gz(THREE), plain.gz_lines),
    replace(packed("gz: JSON Lines in .json.gz", "a.json.gz", gz(THREE), plain.gz_lines), guessed="jsonl"),
    replace(
        packed("gz: array in .json.gz", "a.json.gz", gz(OBJECTS), lambda path: plain.array(path, plain.gunzip)),
        guessed="json",
    ),
    replace(packed("gz: no other extension", "corpus.gz", gz(THREE), plain.gz_lines), guessed="jsonl"),
    anything(packed("gz inside gz", "a.jsonl.gz.gz", gz(gz(THREE)))),
    anything(packed("zst named .gz", "a.jsonl.gz", zst(THREE))),
    anything(packed("gz named .zst", "a.jsonl.zst", gz(THREE))),
    packed("zst: frame with a checksum", "a.jsonl.zst", zst(LONG, write_checksum=True), plain.zst_lines),
    packed(
        "zst: changed checksum", "a.jsonl.zst", changed(zst(LONG, write_checksum=True), -1), plain.zst_lines, broken=1
    ),
    packed(
        "zst: frame to skip",
        "a.jsonl.zst",
        zst(THREE) + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zst(rows("z")),
        lambda _: plain_lines(THREE + rows("z")),
    ),
    packed("zst: frame without its length", "a.jsonl.zst", zst(LONG, write_content_size=False), plain.zst_lines),
    packed("zst: level 19", "a.jsonl.zst", zst(LONG, level=19), plain.zst_lines),
    packed("zst: text", "a.md.zst", zst(b"# text\n"), plain.zst_text),
    packed("bz2", "a.jsonl.bz2", bzip2(THREE), None, binary=1),
    packed("xz", "a.jsonl.xz", lzma.compress(THREE), None, binary=1),
    packed("zip", "a.zip", b"PK\x03\x04", None, binary=1),
    packed("tar.gz", "a.tar.gz", gz(tarred(THREE)), None, binary=1),
    packed("tar", "a.tar", tarred(THREE), None, binary=1),
    packed("Parquet in gz", "a.parquet.gz", gz(b"PAR1"), None, binary=1),
]


def plain_lines(data: bytes) -> list[str]:
    """The texts of lines in memory."""
    return [found for line in data.split(b"\n") for found in plain.line_texts(line)]
