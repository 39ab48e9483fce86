"""Cases of Parquet and Arrow: types, layouts, columns, and changed bytes."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import ROOT
from benchmarks.odd import plain
from benchmarks.odd.case import Case, anything, file, put
from benchmarks.odd.streams import changed

TEXTS = ["first", "second\n", "é\u2028\0", "x" * 5000, *(f"row {number}" for number in range(200))]
FEW = ["a", "b", "a", None, "c", "", "a"]
DAMAGES = 12
"""Files with a changed byte in a case."""


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def ipc(table: pa.Table, rows: int = 50, *, stream: bool = False, **options: Any) -> bytes:
    """An Arrow file or stream with batches of `rows`."""
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return bytes(sink.getvalue())


def texts(type: Any = None, values: Any = TEXTS) -> pa.Table:
    """A table with the column `text`, and another."""
    return pa.table({"n": list(range(len(values))), "text": pa.array(values, type)})


def in_parquet(name: str, data: bytes, names: tuple[str, ...] = ("text",), field: str = "", **left_out: int) -> Case:
    """A case of Parquet."""
    case = file("parquet", name, "a.parquet", data, partial(plain.parquet, names=names), **left_out)
    return replace(case, options={"field": field}) if field else case


def in_arrow(name: str, data: bytes, path: str = "a.arrow", *, stream: bool = False, **left_out: int) -> Case:
    """A case of Arrow."""
    return file("arrow", name, path, data, plain.arrow_stream if stream else plain.arrow, **left_out)


Change = Callable[[bytes, random.Random], bytes]


def damaged(name: str, extension: str, table: pa.Table, change: Change, **options: Any) -> Case:
    """A case of several files, each with other damage: what is there must be right, and what is lost is counted."""
    data = (parquet if extension == "parquet" else ipc)(table, **options)
    names = [f"{number:02d}.{extension}" for number in range(DAMAGES)]

    def make(folder: Path) -> None:
        draw = random.Random(name)
        for path in names:
            put(folder / path, change(data, draw))

    case = Case(kind="damage", name=f"{extension}: {name}", make=make, documents=dict.fromkeys(names, survivors))
    return replace(case, original=tuple(filter(None, table["text"].to_pylist())))


def survivors(path: Path) -> list[str]:
    """The texts of a damaged file as pyarrow gives them in a process of its own, which damage may end."""
    return _survivors(path.parent)[path.name]


@cache
def _survivors(folder: Path) -> dict[str, list[str]]:
    """The texts of all files of a folder. A file that ends the process keeps the texts before that."""
    texts: dict[str, list[str]] = {}
    while left := [str(path) for path in sorted(folder.iterdir()) if path.name not in texts]:
        command = [sys.executable, "-m", "benchmarks.odd.plain", *left]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        for name, text in map(json.loads, done.stdout.splitlines()):
            texts.setdefault(name, []).extend([text] if text else [])
    return texts


def flip(data: bytes, draw: random.Random) -> bytes:
    """A byte changed anywhere but in the texts."""
    while True:
        place = draw.randrange(8, len(data))
        if b"payload" not in data[max(0, place - 9) : place + 9]:
            return changed(data, place)


def flip_at_end(data: bytes, draw: random.Random) -> bytes:
    """A byte changed in the footer."""
    return changed(data, draw.randrange(len(data) - 300, len(data)))


def cut(data: bytes, draw: random.Random) -> bytes:
    """The beginning of the file."""
    return data[: draw.randrange(12, len(data) - 1)]


PAYLOAD = texts(values=[f"payload payload {number} payload" for number in range(200)])
STRUCT = pa.table({"meta": [{"text": "a", "n": 1}, {"text": None, "n": 2}, None, {"text": "b", "n": 3}]})
BOTH = pa.table({"meta.text": ["a", "b"], "meta": [{"text": "c"}, {"text": "d"}]})
TWICE = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
LISTS = pa.table({"meta": [[{"text": "a"}], [{"text": "b"}]]})
INVALID = pa.array([b"a", b"\xff\xfe", b"b"]).view(pa.string())

PARQUET = [
    *(
        in_parquet(name, parquet(texts(kind)))
        for name, kind in (
            ("string", pa.string()),
            ("large_string", pa.large_string()),
            ("binary", pa.binary()),
            ("large_binary", pa.large_binary()),
        )
    ),
    in_parquet("string_view", parquet(texts().set_column(1, "text", pa.array(TEXTS, pa.string_view())))),
    in_parquet("dictionary", parquet(texts(pa.dictionary(pa.int32(), pa.string()), FEW)), empty=2),
    in_parquet("null and empty", parquet(texts(values=FEW)), empty=2),
    in_parquet("only nulls", parquet(texts(pa.string(), [None] * 5)), empty=5),
    in_parquet("type null", parquet(texts(pa.null(), [None] * 5)), empty=5),
    in_parquet("0 rows", parquet(texts(pa.string(), [])), empty=1),
    in_parquet("rows that are not UTF-8", parquet(texts(values=INVALID)), undecodable=1),
    *(in_parquet(name, parquet(texts(), compression=name)) for name in ("none", "gzip", "brotli", "zstd", "lz4")),
    in_parquet("groups of 1 row", parquet(texts(), row_group_size=1)),
    in_parquet("pages of version 2", parquet(texts(), data_page_version="2.0", data_page_size=100)),
    in_parquet("delta bytes", parquet(texts(), use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})),
    in_parquet("many columns", parquet(pa.table({**{f"c{i}": [1, 2] for i in range(500)}, "text": ["a", "b"]}))),
    in_parquet("struct", parquet(STRUCT), ("meta", "text"), "meta.text", empty=2),
    in_parquet("column with a dot", parquet(BOTH.select([0])), ("meta.text",), "meta.text"),
    in_parquet("column with a dot before a path", parquet(BOTH), ("meta.text",), "meta.text"),
    file("parquet", "no column of that name", "a.parquet", parquet(pa.table({"body": ["a"]})), broken=1),
    file("parquet", "numbers in the column", "a.parquet", parquet(pa.table({"text": [1, 2]})), broken=1),
    file("parquet", "two columns of one name", "a.parquet", parquet(TWICE), broken=1),
    replace(file("parquet", "list of structs", "a.parquet", parquet(LISTS), broken=1), options={"field": "meta.text"}),
    file("parquet", "0 bytes", "a.parquet", b"", empty=1),
    file("parquet", "only the magic", "a.parquet", b"PAR1PAR1", broken=1),
    file("parquet", "encrypted footer", "a.parquet", b"PARE" + bytes(40) + b"PARE", broken=1),
    file("parquet", "cut", "a.parquet", parquet(texts())[:-30], broken=1),
    replace(file("parquet", "without an extension", "a", parquet(texts()), plain.parquet), guessed="parquet"),
    replace(in_parquet("groups in parts", parquet(texts(), row_group_size=3)), options={"unit_bytes": 997}),
    damaged("a byte in pages", "parquet", PAYLOAD, flip, write_page_checksum=True, row_group_size=50),
    damaged("a byte in the footer", "parquet", PAYLOAD, flip_at_end, write_page_checksum=True),
    damaged("cut", "parquet", PAYLOAD, cut, row_group_size=50),
]

ARROW = [
    in_arrow("file", ipc(texts())),
    in_arrow("stream", ipc(texts(), stream=True), stream=True),
    in_arrow("stream named .arrows", ipc(texts(), stream=True), "a.arrows", stream=True),
    in_arrow("feather", ipc(texts()), "a.feather"),
    replace(in_arrow("file without an extension", ipc(texts()), "a"), guessed="arrow"),
    replace(in_arrow("stream without an extension", ipc(texts(), stream=True), "a", stream=True), guessed="arrow"),
    in_arrow("batches of 1 row", ipc(texts(), 1)),
    in_arrow("lz4", ipc(texts(), compression="lz4")),
    in_arrow("zstd", ipc(texts(), compression="zstd", stream=True), stream=True),
    in_arrow("large_string", ipc(texts(pa.large_string()))),
    in_arrow("string_view", ipc(texts().set_column(1, "text", pa.array(TEXTS, pa.string_view())))),
    in_arrow("dictionary", ipc(texts(pa.dictionary(pa.int8(), pa.string()), FEW)), empty=2),
    in_arrow("dictionary of large_string", ipc(texts(pa.dictionary(pa.int64(), pa.large_string()), FEW)), empty=2),
    in_arrow(
        "dictionary in a stream",
        ipc(texts(pa.dictionary(pa.int8(), pa.string()), FEW), 2, stream=True),
        stream=True,
        empty=2,
    ),
    in_arrow("null and empty", ipc(texts(values=FEW), 2), empty=2),
    in_arrow("0 rows", ipc(texts(pa.string(), [])), empty=1),
    in_arrow("0 batches in a stream", ipc(texts(pa.string(), []), stream=True), stream=True, empty=1),
    file(
        "arrow", "rows that are not UTF-8", "a.arrow", ipc(texts(values=INVALID)), lambda _: ["a", "b"], undecodable=1
    ),
    in_arrow("binary", ipc(texts(pa.binary()))),
    file("arrow", "numbers in the column", "a.arrow", ipc(pa.table({"text": [1, 2]})), broken=1),
    file("arrow", "no column of that name", "a.arrow", ipc(pa.table({"body": ["a"]})), broken=1),
    file("arrow", "0 bytes", "a.arrow", b"", empty=1),
    file("arrow", "1 byte", "a.arrow", b"A", broken=1),
    file("arrow", "stream without its mark", "a.arrow", ipc(texts(), stream=True)[:-8], lambda _: TEXTS, broken=1),
    anything(file("arrow", "Parquet named .arrow", "a.arrow", parquet(texts()))),
    anything(file("parquet", "Arrow named .parquet", "a.parquet", ipc(texts()))),
    replace(in_arrow("batches in parts", ipc(texts(), 3)), options={"unit_bytes": 997}),
    damaged("a byte", "arrow", PAYLOAD, flip),
    damaged("a byte in the footer", "arrow", PAYLOAD, flip_at_end),
    damaged("a byte in lz4", "arrow", PAYLOAD, flip, compression="lz4"),
    damaged("a byte in a dictionary", "arrow", texts(pa.dictionary(pa.int8(), pa.string()), FEW), flip, rows=2),
    damaged("cut", "arrow", PAYLOAD, cut),
]


def saved(folder: Path) -> None:
    """Folders as `save_to_disk` of Hugging Face's datasets writes them, with its caches."""
    put(folder / "set/dataset_dict.json", json.dumps({"splits": ["train", "test"]}).encode())
    for split, values in (("train", TEXTS), ("test", FEW[:3])):
        below = folder / "set" / split
        put(below / "data-00000-of-00001.arrow", ipc(texts(values=values), stream=True))
        put(below / "cache-0123456789abcdef.arrow", ipc(texts(values=["cached"]), stream=True))
        put(below / "dataset_info.json", json.dumps({"features": {"text": {"dtype": "string"}}}).encode())
        put(below / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}).encode())


SAVED = [
    Case(
        kind="arrow",
        name="save_to_disk",
        make=saved,
        documents={f"set/{split}/data-00000-of-00001.arrow": plain.arrow_stream for split in ("train", "test")},
        left_out={"metadata": 7},
    )
]
