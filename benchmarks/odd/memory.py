"""Cases whose memory is measured: large documents, large groups of rows, and little input that inflates to much."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.odd import plain
from benchmarks.odd.case import Case
from benchmarks.odd.lines import rows
from benchmarks.odd.streams import gz
from benchmarks.odd.tables import ipc, parquet, texts

LARGEST = 64 << 20
"""Largest document by default."""


def alone(
    name: str, path: str, make: Callable[[Path], object], reader: Any = None, largest: int = 0, **left_out: int
) -> Case:
    """A case in a process of its own. `largest`: bytes of a document that is left out."""

    def write(folder: Path) -> None:
        make(folder / path)

    read = {path: reader} if reader else {}
    return Case(kind="memory", name=name, make=write, documents=read, left_out=left_out, alone=True, largest=largest)


def bomb(path: Path) -> None:
    """A line of 1 GB in 50 kB of Zstandard, between two short ones."""
    with path.open("wb") as out, zstandard.ZstdCompressor(level=3).stream_writer(out) as packed:
        packed.write(rows("first") + b'{"text": "')
        for _ in range(1000):
            packed.write(b"a" * 1_000_000)
        packed.write(b'"}\n' + rows("last"))


def big(path: Path) -> None:
    """A text of 200 MB."""
    with path.open("wb") as out:
        for number in range(200):
            out.write(f"{number:09d}\n".encode() * 100_000)


def big_rows(path: Path, count: int, size: int, nested: bool) -> None:
    """A group of rows with long texts, each in a page of its own, as pyarrow decodes a page as a whole."""
    schema = pa.schema([("text", pa.string())])
    column = pa.array([f"{number:08d}" * (size // 8) for number in range(count)])
    table = pa.table({"meta": pa.StructArray.from_arrays([column], ["text"])}) if nested else pa.table([column], schema)
    pq.write_table(table, path, row_group_size=count, write_batch_size=1, use_dictionary=False, compression="zstd")


def nested(case: Case) -> Case:
    """The case with its text in a struct."""
    return replace(case, options={"field": "meta.text"})


MB40 = "0123456789" * 4_000_000
in_struct = partial(plain.parquet, names=("meta", "text"))

MEMORY = [
    alone("a line of 1 GB in 50 kB of Zstandard", "a.jsonl.zst", bomb, lambda _: ["first", "last"], LARGEST, long=1),
    alone("1 GB of text in Zstandard", "a.txt.zst", bomb, None, LARGEST, long=1),
    alone("text of 200 MB", "a.txt", big, None, LARGEST, long=1),
    alone(
        "array with an element of 200 MB",
        "a.json",
        lambda path: path.write_bytes(b'["a", "' + b"x" * 200_000_000 + b'"]'),
        lambda _: ["a"],
        LARGEST,
        long=1,
    ),
    alone("a line of 40 MB", "a.jsonl", lambda path: path.write_bytes(rows("a", MB40, "b")), plain.lines),
    alone("text of 40 MB", "a.txt", lambda path: path.write_bytes(MB40.encode()), plain.text),
    alone(
        "a row of 40 MB in Parquet",
        "a.parquet",
        lambda path: path.write_bytes(parquet(texts(values=["a", MB40, "b"]))),
        plain.parquet,
    ),
    alone(
        "a row of 40 MB in Arrow",
        "a.arrow",
        lambda path: path.write_bytes(ipc(texts(values=["a", MB40, "b"]), 1)),
        plain.arrow,
    ),
    alone(
        "rows of 1 MB in a group of Parquet",
        "a.parquet",
        partial(big_rows, count=150, size=10**6, nested=False),
        plain.parquet,
    ),
    nested(
        alone(
            "structs of 1 MB in a group of Parquet",
            "a.parquet",
            partial(big_rows, count=150, size=10**6, nested=True),
            in_struct,
        )
    ),
    alone(
        "300,000 short lines",
        "a.jsonl",
        lambda path: path.write_bytes(b'{"text": "a b c"}\n' * 300_000),
        plain.lines,
    ),
    alone(
        "20 MB of newlines in gzip",
        "a.jsonl.gz",
        lambda path: path.write_bytes(gz(b"\n" * 20_000_000)),
        None,
        empty=1,
    ),
]
