"""Cases of records: WebDataset tars, lines and tables with all their columns."""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from benchmarks.odd import plain
from benchmarks.odd.case import Case, file
from benchmarks.odd.tables import parquet


def tarred(*members: tuple[str, bytes], format: int = tarfile.PAX_FORMAT, odd: Mapping[str, bytes] = {}) -> bytes:
    """A tar of regular files, and of members of other types."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format, errors="surrogateescape") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in odd.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.txt"
            archive.addfile(member)
    return content.getvalue()


def record(name: str, path: str, data: bytes, reader: Any = plain.tar, **left_out: int) -> Case:
    """A case of records."""
    return replace(file("records", name, path, data, reader, **left_out), options={"kind": "records"})


PAIRS = [
    (f"{number:03d}.{extension}", f"{number} {extension}".encode())
    for number in range(30)
    for extension in ("txt", "cls")
]
WHOLE = tarred(*PAIRS)

RECORDS = [
    record("tar", "a.tar", WHOLE),
    record(
        "GNU tar with long names",
        "a.tar",
        tarred(("d" * 150 + "/a.txt", b"x"), ("é" * 60 + ".txt", b"y"), format=tarfile.GNU_FORMAT),
    ),
    record("PAX tar with long names", "a.tar", tarred(("d" * 150 + "/a.txt", b"x"), ("é" * 60 + ".txt", b"y"))),
    record("a name twice", "a.tar", tarred(("a.txt", b"1"), ("a.txt", b"2"), ("b.txt", b"3"))),
    record("empty members", "a.tar", tarred(("a.txt", b""), ("b.txt", b"x"))),
    record("extensions with dots", "a.tar", tarred(("a.seg.png", b"1"), ("a.txt", b"2"), ("x/b.txt", b"3"))),
    record(
        "members without an extension", "a.tar", tarred(("a.txt", b"1"), ("README", b"2"), ("b.txt", b"3")), broken=1
    ),
    record(
        "links and devices",
        "a.tar",
        tarred(
            ("a.txt", b"1"),
            odd={
                "b.txt": tarfile.SYMTYPE,
                "c.txt": tarfile.LNKTYPE,
                "d.txt": tarfile.CHRTYPE,
                "e.txt": tarfile.FIFOTYPE,
            },
        ),
        special=4,
    ),
    record("names upward and absolute", "a.tar", tarred(("../../a.txt", b"1"), ("/etc/b.txt", b"2"))),
    record("tar without its end", "a.tar", WHOLE[: len(WHOLE) // 1024 * 512], broken=1),
    record("tar of zeros", "a.tar", bytes(10240), None, empty=1),
    record("tar of 0 bytes", "a.tar", b"", None, empty=1),
    record("tar of other bytes", "a.tar", b"x" * 10240, None, broken=1),
    record("lines", "a.jsonl", b'{"a": 1, "b": "x"}\n{"a": 2}\n{"b": "\\u00e9"}\n', plain.objects),
    record(
        "Parquet",
        "a.parquet",
        parquet(pa.table({"n": [1, None, 3], "s": ["a", "", None], "raw": [b"\xff", b"", None]})),
        plain.table,
    ),
    record("text alone", "a.txt", b"text", None, text=1),
]
