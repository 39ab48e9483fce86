"""Documents of each format, read whole and in parts, and damage in each."""

import gzip
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fmscale.data.ingest.formats import Bad, FilePart, Item, RawDocument, columns, detect, read, splittable
from fmscale.data.ingest.formats.arrow_footer import rows_of_batches
from tests.data.ingest.corpora import arrow, lines, parquet, sentences

TEXTS = ["first", "zweite Zeile: ä", "三", "", *(text[:60] for text in sentences("s", 9))]


def found(path: Path, format: str = "", field: str = "text", **piece: int) -> list[Item]:
    with path.open("rb") as file:
        kind = format or detect(path.name)
        return list(read(file, FilePart(source=path.name, format=kind, field=field, **piece)))


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, RawDocument)]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.md", "text"),
        ("Makefile", "text"),
        ("a.b.py", "text"),
        ("x.jsonl", "jsonl"),
        ("X.NDJSON.GZ", "jsonl"),
        ("x.jsonl.zst", "jsonl"),
        ("notes.txt.gz", "text"),
        ("x.tar.gz", "binary"),
        ("x.parquet.gz", "binary"),
        ("x.parquet", "parquet"),
        ("x.feather", "arrow"),
        ("x.png", "binary"),
        ("dir.png/readme", "text"),
    ],
)
def test_formats_by_extension(name: str, format: str) -> None:
    assert detect(name) == format


def test_text_is_one_document(tmp_path: Path) -> None:
    data = "\ufeffhéllo\r\n".encode()
    assert found(write(tmp_path / "a.txt", data)) == [RawDocument("héllo\r\n".encode(), 0, len(data))]
    assert texts(found(write(tmp_path / "a.txt.gz", gzip.compress(b"zipped")))) == ["zipped"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"caf\xe9", "undecodable"),
        ("a.txt", b"text\0more", "binary"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "broken"),
        ("a.txt.gz", b"not gzip", "broken"),
        ("a.txt.zst", zstandard.compress(b"xy" * 500)[:-5], "broken"),
        ("a.jsonl", b"{broken\n", "broken"),
        ("a.jsonl", b'{"text": 5}\n', "broken"),
        ("a.jsonl", b'{"other": "x"}\n', "broken"),
        ("a.jsonl", b"[1]\n", "broken"),
        ("a.jsonl", b'{"text": "\xff"}\n', "undecodable"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "undecodable"),
        ("a.jsonl", b'{"text": null}\n', "empty"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "broken"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "broken"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 100, mtime=0)[:-12], "broken"),
        ("a.jsonl.zst", b"nonsense", "broken"),
        ("a.parquet", b"PAR1 nonsense PAR1", "broken"),
        ("a.arrow", b"ARROW1 nonsense ARROW1", "broken"),
        ("a.arrow", b"\0", "broken"),
        *((f"a.{name}", b"", "empty") for name in ("txt", "jsonl", "parquet", "arrow", "jsonl.gz")),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    bad = [item for item in found(write(tmp_path / name, data)) if isinstance(item, Bad)]
    assert [item.reason for item in bad] == [reason]
    good = write(tmp_path / f"good-{name}", data)
    if name == "a.jsonl":
        after = found(write(good, data + b'{"text": "after"}\n'))
        assert texts(after) == ["after"]


def test_compressed_lines_may_be_several_frames(tmp_path: Path) -> None:
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        data = compress(lines(TEXTS[:5])) + compress(lines(TEXTS[5:]))
        assert texts(found(write(tmp_path / name, data))) == TEXTS


def test_numbers_beside_a_text_do_not_matter(tmp_path: Path) -> None:
    """Python refuses to read an integer of more than 4300 digits."""
    data = b'{"n": ' + b"9" * 5000 + b', "text": "a"}'
    assert texts(found(write(tmp_path / "a.jsonl", data + b"\n" + data))) == ["a", "a"]
    assert texts(found(write(tmp_path / "a.json", b"[" + data + b"," + data + b"]"), "json")) == ["a", "a"]


@pytest.mark.parametrize("last", [b"", b"\n"])
def test_pieces_of_jsonl_partition_its_lines(tmp_path: Path, last: bytes) -> None:
    data = b"\xef\xbb\xbf" + lines(TEXTS).replace(b"\n", b"\n\n", 2).rstrip() + last
    path = write(tmp_path / "a.jsonl", data)
    whole = found(path)
    assert texts(whole) == TEXTS
    for item in whole:
        assert isinstance(item, RawDocument)
        assert data[item.start : item.stop].strip().endswith(b"}")
    for of in (1, 2, 3, 5, 17, 150, len(data) + 1):
        assert [item for i in range(of) for item in found(path, index=i, of=of)] == whole


@pytest.mark.parametrize("field", ["text", "a.b.text"])
def test_field_paths_in_lines(tmp_path: Path, field: str) -> None:
    assert texts(found(write(tmp_path / "a.jsonl", lines(TEXTS, field)), field=field)) == TEXTS


@pytest.mark.parametrize(
    "make",
    [
        lambda path: parquet(path / "a.parquet", TEXTS),
        lambda path: parquet(path / "a.parquet", TEXTS, rows=100),
        lambda path: arrow(path / "a.arrow", TEXTS),
        lambda path: arrow(path / "a.feather", TEXTS, compression="zstd"),
        lambda path: arrow(path / "a.arrow", TEXTS, stream=True),
    ],
)
def test_pieces_of_tables_partition_their_rows(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    whole = [RawDocument(text.encode(), i, i + 1) for i, text in enumerate(TEXTS)]
    for of in (1, 2, 3, 4, 5, 20):
        assert [item for i in range(of) for item in found(path, index=i, of=of)] == whole


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
)
def test_types_of_text_columns(tmp_path: Path, kind: Any) -> None:
    column = pa.array(["a", "b", None]).cast(kind)
    struct = pa.StructArray.from_arrays([column], names=["text"])
    table = pa.table({"text": column, "in": struct})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    paths = [tmp_path / "a.arrow"]
    if kind != pa.string_view():
        pq.write_table(table, tmp_path / "a.parquet")
        paths.append(tmp_path / "a.parquet")
    for path in paths:
        for field in ("text", "in.text"):
            assert found(path, field=field) == [
                RawDocument(b"a", 0, 1),
                RawDocument(b"b", 1, 2),
                Bad("empty", "row 2"),
            ]


def test_bad_utf8_in_one_row_costs_that_row(tmp_path: Path) -> None:
    column = pa.array([b"ok", b"\xff", b"ok2"]).view(pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert [type(item) for item in found(tmp_path / "a.parquet")] == [RawDocument, Bad, RawDocument]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("contents", "did you mean 'content'?"),
        ("number", "the column number holds int64 and not text"),
        ("messages.text", "the column messages holds lists (list<"),
        ("in.a", "two columns have the name in.a"),
        ("twice", "two columns have the name twice"),
        ("in.c", "no column in.c among content, number, messages, in, twice"),
    ],
)
def test_a_table_without_the_column_is_named_with_the_reason(tmp_path: Path, field: str, message: str) -> None:
    struct = pa.StructArray.from_arrays([pa.array(["x"])] * 2, names=["a.b", "d"])
    columns = {"content": ["a"], "number": [1], "messages": [[{"text": "a"}]], "in": struct, "twice": ["a"]}
    names = [*columns, "twice", "in.a", "in.a"]
    table = pa.table([pa.array(one) for one in [*columns.values(), ["a"], ["a"], ["a"]]], names)
    arrow_file = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(arrow_file), table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "a.parquet")
    for path in (arrow_file, tmp_path / "a.parquet"):
        (bad,) = found(path, field=field)
        assert isinstance(bad, Bad)
        assert (bad.reason, message in bad.where) == ("broken", True), bad.where
        assert [one for index in range(3) for one in found(path, field=field, index=index, of=3)] == [bad]


@pytest.mark.parametrize("extension", ["parquet", "arrow"])
def test_a_whole_name_comes_before_a_path(tmp_path: Path, extension: str) -> None:
    inner = pa.StructArray.from_arrays([pa.array(["3"]), pa.array(["4"])], names=["c.d", "c"])
    table = pa.table({"a.b": ["1"], "a": [{"b": "2"}], "e.f": inner})
    path = tmp_path / f"a.{extension}"
    if extension == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    row = {"a.b": "1", "a": {"b": "2"}, "e.f": {"c.d": "3", "c": "4"}}
    for field, text in (("a.b", "1"), ("e.f.c.d", "3"), ("e.f.c", "4")):
        assert texts(found(path, field=field)) == [text]
        assert texts(found(write(tmp_path / "a.jsonl", json.dumps(row).encode()), field=field)) == [text]


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("field", ["text", "in.text"])
def test_rows_of_parquet_are_decoded_by_their_bytes(tmp_path: Path, field: str, dictionary: bool) -> None:
    """A count alone is no bound: pyarrow refuses a batch of nested texts above 2 GiB."""
    path = tmp_path / "a.parquet"
    values = pa.array([("same" if dictionary else f"{i:04d}") * 250_000 for i in range(40)])
    table = pa.table({"text": values, "in": pa.StructArray.from_arrays([values], names=["text"])})
    # A page is decoded whole, and pyarrow ends a page only behind a batch of its writing.
    pq.write_table(table, path, use_dictionary=dictionary, dictionary_pagesize_limit=4 << 20, write_batch_size=1)
    small = pa.table({"text": [f"{i}" for i in range(3000)]})
    before = pa.total_allocated_bytes()
    with path.open("rb") as file:
        items = read(file, FilePart(source="a", format="parquet", field=field))
        most = max(pa.total_allocated_bytes() for item in items if isinstance(item, RawDocument)) - before
    assert most < 32 << 20
    pq.write_table(small, path)
    group = pq.ParquetFile(path).metadata.row_group(0)
    with path.open("rb") as file:
        assert columns._rows_at_once(group, [0], partial(columns._largest, file, 0)) == columns.ROWS
    assert len(found(path)) == 3000


def test_a_table_cut_in_the_middle_keeps_the_rows_before(tmp_path: Path) -> None:
    data = bytearray(arrow(tmp_path / "a.arrow", TEXTS, compression="zstd").read_bytes())
    place = data.rindex(b"\x28\xb5\x2f\xfd")
    data[place : place + 40] = b"\xff" * 40
    items = found(write(tmp_path / "b.arrow", bytes(data)))
    assert texts(items) == TEXTS[: len(items) - 1]
    assert isinstance(items[-1], Bad)
    assert items[-1].where.startswith(f"from row {len(items) - 1} on")


@pytest.mark.parametrize("options", [{}, {"compression": "lz4"}, {"metadata_version": pa.MetadataVersion.V4}])
def test_rows_of_arrow_batches_are_pyarrows(tmp_path: Path, options: dict[str, Any]) -> None:
    path = arrow(tmp_path / "a.arrow", TEXTS, rows=5, **options)
    with pa.ipc.open_file(str(path)) as reader:
        expected = [len(reader.get_batch(i)) for i in range(reader.num_record_batches)]
    assert rows_of_batches(io.BytesIO(path.read_bytes())) == expected == [5, 5, 3]
    with pytest.raises(ValueError, match="damaged"):
        rows_of_batches(io.BytesIO(path.read_bytes()[:-10] + b"\xff\0\0\0ARROW1"))


def test_what_can_be_divided() -> None:
    assert splittable("a.jsonl", "jsonl")
    assert splittable("a.parquet", "parquet")
    assert not splittable("a.jsonl.gz", "jsonl")
    assert not splittable("a.txt", "text")
