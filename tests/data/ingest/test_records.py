"""Any columns in, the same columns out: `ingest` of records, from every kind of input."""

import gzip
import io
import json
import os
import tarfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.ingest import IngestResult, ingest
from fmscale.data.ingest.blocks import JSON
from fmscale.data.ingest.plan import document_id
from fmscale.errors import ConfigError, DataError
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.open import open_store
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.records import open_record_segment, read_records, storable
from tests.data.ingest.corpora import MOMENT, contents, put, sentences
from tests.store.segments.test_records import TYPES, values


def run(folder: Path | str, store: Path | str, **options: Any) -> IngestResult:
    given: dict[str, Any] = {"store": str(store), "dataset": "r", "kind": "records", "workers": 1, **options}
    return ingest([str(folder)], **given)


def tables(store: Path | str, split: str = "train") -> list[pa.Table]:
    """The records of each segment of all commits; their documents are checked."""
    backend = open_store(str(store))
    found = []
    for commit in open_dataset(backend, "r").commits():
        for row in commit.manifests[split].rows() if split in commit.manifests else ():
            segment = open_record_segment(backend, row.prefix, row.seal)
            table = read_records(backend, segment, 0, segment.documents)
            documents = read_document_table(backend, segment)
            assert documents["id"].to_pylist() == [
                document_id(d["source"], d["start"]) for d in documents.select(["source", "start"]).to_pylist()
            ]
            for name in ("source", "start", "stop"):
                table = table.append_column(f"_{name}", documents[name].cast(storable(documents[name].type)))
            found.append(table)
    return found


def rows(store: Path, split: str = "train") -> list[dict[str, Any]]:
    """All records in order, with `_source`, `_start` and `_stop`."""
    return [row for table in tables(store, split) for row in table.to_pylist()]


def decoded(rows: list[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows with the values of JSON texts."""
    texts = {field.name for field in schema if field.metadata == JSON}
    return [{n: json.loads(v) if n in texts and v is not None else v for n, v in row.items()} for row in rows]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("_") or name == "__key__"}


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return put(path, content.getvalue())


def table_file(path: Path, table: pa.Table, rows: int = 4) -> Path:
    put(path, b"")
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    else:
        new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    os.utime(path, (MOMENT, MOMENT))
    return path


def mixed_records(folder: Path) -> Path:
    """A folder with records of every kind."""
    lines = [json.dumps({"text": text, "n": i, "tags": ["a"] * (i % 3)}) for i, text in enumerate(sentences("l", 9))]
    data = "\n".join(lines).encode()
    put(folder / "a.jsonl", data + b"\n{broken\n[1]\n{}\n")
    put(folder / "a.jsonl.gz", gzip.compress(data, mtime=0))
    put(folder / "b.ndjson.zst", zstandard.compress(data))
    put(folder / "c.json", json.dumps([{"text": "x", "n": 2.5}, {"other": {"deep": [1, None]}}, "alone"]))
    table = pa.table({"text": sentences("p", 9), "vector": [[float(i)] * 3 for i in range(9)]})
    for name in ("d.parquet", "e.arrow", "f.arrows"):
        table_file(folder / name, table)
    tar(
        folder / "g.tar", [(f"x/{i:03d}.{name}", b"%d" % i * i) for i in range(8) for name in ("jpg", "cls", "seg.png")]
    )
    for i in range(5):
        put(folder / f"img/cats/{i}.jpg", bytes([0, i]) * 300)
    put(folder / "img/cats/3.txt", "a cat")
    put(folder / "img/notes.md", "# not a record")
    return folder


def test_every_kind_of_input_keeps_all_its_columns(tmp_path: Path) -> None:
    result = run(mixed_records(tmp_path / "in"), tmp_path / "store")
    assert (result.kind, result.tokens, result.tokenizer, result.new) == ("records", 0, None, True)
    found = rows(tmp_path / "store")
    assert result.documents == len(found) == 3 * 9 + 2 + 3 * 9 + 8 + 5
    by = {source: [row for row in found if row["_source"] == source] for source in {row["_source"] for row in found}}
    for source in ("a.jsonl", "a.jsonl.gz", "b.ndjson.zst"):
        assert [(r["text"], r["n"], r["tags"]) for r in by[source]] == [
            (text, i, ["a"] * (i % 3)) for i, text in enumerate(sentences("l", 9))
        ]
    assert [(r["text"], r["n"], r["other"]) for r in by["c.json"]] == [
        ("x", 2.5, None),
        (None, None, {"deep": [1, None]}),
    ]
    for source in ("d.parquet", "e.arrow", "f.arrows"):
        assert [(r["text"], r["vector"]) for r in by[source]] == [
            (text, [float(i)] * 3) for i, text in enumerate(sentences("p", 9))
        ]
        assert [(r["_start"], r["_stop"]) for r in by[source]] == [(i, i + 1) for i in range(9)]
    assert [(r["__key__"], r["jpg"], r["cls"], r["seg.png"]) for r in by["g.tar"]] == [
        (f"x/{i:03d}", b"%d" % i * i, b"%d" % i * i, b"%d" % i * i) for i in range(8)
    ]
    for i in range(5):
        (row,) = by[f"img/cats/{i}.jpg"]
        assert (row["name"], row["data"], row["folder"]) == (f"img/cats/{i}.jpg", bytes([0, i]) * 300, "cats")
        assert row["txt"] == (b"a cat" if i == 3 else None)
    assert {reason: one["count"] for reason, one in result.skipped.items()} == {"broken": 3, "empty": 1, "text": 1}
    assert result.skipped["text"]["first"] == ["img/notes.md"]
    backend = open_store(str(tmp_path / "store"))
    assert verify_dataset(backend, open_dataset(backend, "r")) == []
    again = run(tmp_path / "in", tmp_path / "store")
    assert (again.new, again.documents, again.skipped) == (False, result.documents, result.skipped)


def test_any_writers_and_units_keep_the_same_records(tmp_path: Path) -> None:
    mixed_records(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "one", unit_bytes=4000, heldout=0.3)
    run(tmp_path / "in", tmp_path / "two", unit_bytes=4000, heldout=0.3, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run(tmp_path / "in", tmp_path / "three")
    whole = {(r["_source"], r["_start"]): r for r in rows(tmp_path / "three")}
    parts = [*rows(tmp_path / "one"), *(held := rows(tmp_path / "one", "heldout"))]
    assert len(held) > 5
    assert len(parts) == len(whole)
    for row in parts:
        other = whole[row["_source"], row["_start"]]
        assert {k: v for k, v in row.items() if v is not None} == {k: v for k, v in other.items() if v is not None}


def test_values_without_a_common_type_are_json_text(tmp_path: Path) -> None:
    mixed: list[Any] = [{"a": 1, "b": {"x": 1}}, {"a": "s", "b": [2]}, {"a": None, "c": 2**70}, {"b": {"é": [True]}}]
    put(tmp_path / "in/a.jsonl", "\n".join(map(json.dumps, mixed)))
    put(tmp_path / "in/b.jsonl", "\n".join(json.dumps({"n": n}) for n in (2**60 + 1, 1)))
    run(tmp_path / "in", tmp_path / "one", unit_bytes=1)
    put(tmp_path / "in/c.jsonl", '{"n": 0.5}')
    run(tmp_path / "in", tmp_path / "two")
    for store in ("one", "two"):
        found = [row for table in tables(tmp_path / store) for row in decoded(table.to_pylist(), table.schema)]
        for row, wanted in zip(found, mixed, strict=False):
            assert {name: row.get(name) for name in "abc"} == {name: wanted.get(name) for name in "abc"}
    (table,) = tables(tmp_path / "two")
    assert {name: table.field(name).metadata for name in "abcn"} == dict.fromkeys("abcn", JSON)
    assert [json.loads(n) for n in table["n"].to_pylist() if n] == [2**60 + 1, 1, 0.5]
    assert next(t["n"].to_pylist() for t in tables(tmp_path / "one") if "n" in t.column_names) == [2**60 + 1]


def test_types_widen_without_loss(tmp_path: Path) -> None:
    first = {"i": pa.array([1, None], pa.int32()), "s": [{"b": 1, "a": 2}, None], "l": [[1], None], "gone": [b"x", b""]}
    second = {"i": pa.array([2**40, 3], pa.int64()), "s": [{"a": 2.5, "c": "z"}, {}], "l": [[], [0.5]]}
    table_file(tmp_path / "in/a.parquet", pa.table(first))
    table_file(tmp_path / "in/b.parquet", pa.table(second))
    run(tmp_path / "in", tmp_path / "store")
    (found,) = tables(tmp_path / "store")
    assert found["i"].to_pylist() == [1, None, 2**40, 3]
    assert found["l"].to_pylist() == [[1], None, [], [0.5]]
    assert found["gone"].to_pylist() == [b"x", b"", None, None]
    none = {"b": None, "a": None, "c": None}
    assert found["s"].to_pylist() == [{**none, "b": 1, "a": 2}, None, {**none, "a": 2.5, "c": "z"}, none]
    assert str(found.schema.field("s").type) == "struct<b: int64, a: double, c: string>"


def test_dictionaries_runs_and_views_are_stored_as_their_values(tmp_path: Path) -> None:
    words = pa.array(["a", None, "b", "a"] * 5)
    lists = pa.array([["x"], None, [], ["y", "z"]] * 5)
    table = pa.table(
        {
            "d": words.dictionary_encode(),
            "v": words.cast(pa.string_view()),
            "n": pa.StructArray.from_arrays([words.dictionary_encode()], ["q"]),
            "l": pa.array(lists.to_pylist(), pa.list_view(pa.string())),
            "r": pa.compute.run_end_encode(pa.array([1] * 10 + [2] * 10)),
        }
    )
    expected = table.to_pylist()
    table_file(tmp_path / "in/a.arrow", table)
    run(tmp_path / "in", tmp_path / "store")
    (found,) = tables(tmp_path / "store")
    assert found.select("dvnlr").to_pylist() == expected
    kinds = ["string", "string", "struct<q: string>", "list<item: string>", "int64"]
    assert [str(found.field(name).type) for name in "dvnlr"] == kinds


def test_members_of_a_tar_are_grouped_by_the_name_up_to_the_first_dot(tmp_path: Path) -> None:
    tar(tmp_path / "in/a.tar", [
        ("a/1.jpg", b"1"), ("a/1.seg.png", b""), ("b/1.jpg", b"2"), ("b/1.jpg", b"3"), ("b.c/d.txt", b"4"),
        ("b.c/e", b"5"), ("a/.hid.x", b"6"),
    ])  # fmt: skip
    result = run(tmp_path / "in", tmp_path / "store")
    found = rows(tmp_path / "store")
    assert [{k: v for k, v in plain(row).items() if v is not None} for row in found] == [
        {"__key__": "a/1", "jpg": b"1", "seg.png": b""},
        {"__key__": "b/1", "jpg": b"2"},
        {"__key__": "b/1", "jpg": b"3"},
        {"__key__": "b.c/d", "txt": b"4"},
    ]
    assert [row["_start"] for row in found] == [0, 1536 + 512 - 512, 2560, 3584]
    assert {reason: one["first"] for reason, one in result.skipped.items()} == {
        "broken": ["a.tar: 'b.c/e' has no extension that can be a column"],
        "hidden": ["a.tar: 'a/.hid.x' has no extension that can be a column"],
    }


def test_texts_beside_a_media_file(tmp_path: Path) -> None:
    put(tmp_path / "in/x.png", b"png")
    put(tmp_path / "in/x.wav", b"wav")
    put(tmp_path / "in/x.caption", "caption")
    put(tmp_path / "in/x.foo.png", b"foo")
    put(tmp_path / "in/x.json", '{"a": 1}')
    put(tmp_path / "in/y.mp4", b"")
    put(tmp_path / "in/z.gif", b"gif")
    put(tmp_path / "in/z.txt", "text")
    put(tmp_path / "in/z.caption", "caption")
    result = run(tmp_path / "in", tmp_path / "store", unit_bytes=1)
    assert result.units == 5
    found = {row["name"]: {k: v for k, v in plain(row).items() if v is not None} for row in rows(tmp_path / "store")}
    beside = {"json": b'{"a": 1}', "txt": b"caption"}
    assert found == {
        "x.png": {"name": "x.png", "data": b"png", "folder": "", **beside},
        "x.wav": {"name": "x.wav", "data": b"wav", "folder": "", **beside},
        "x.foo.png": {"name": "x.foo.png", "data": b"foo", "folder": ""},
        "z.gif": {"name": "z.gif", "data": b"gif", "folder": "", "txt": b"text", "caption": b"caption"},
    }
    assert result.skipped["empty"]["first"] == ["y.mp4"]
    os.utime(tmp_path / "in/x.json", (1, 1))
    assert run(tmp_path / "in", tmp_path / "store").new, "a text beside an image is a part of the job's inputs"


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3 - 100]


def flipped(data: bytes) -> bytes:
    at = len(data) // 2 // 512 * 512
    return data[:at] + b"\xff" * 512 + data[at + 512 :]


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.arrow", "a.arrows", "a.jsonl", "a.json"])
@pytest.mark.parametrize("damage", [cut, flipped])
def test_what_lies_before_damage_is_kept_and_the_damage_named(tmp_path: Path, name: str, damage: Any) -> None:
    noise = np.random.default_rng(0)
    data = [noise.bytes(1000).hex() for _ in range(60)]
    path = tmp_path / "in" / name
    if name == "a.tar":
        tar(path, [(f"{i}.txt", text.encode()) for i, text in enumerate(data)])
    elif name == "a.jsonl":
        put(path, "".join(json.dumps({"txt": text}) + "\n" for text in data))
    elif name == "a.json":
        put(path, json.dumps([{"txt": text} for text in data]))
    else:
        table_file(path, pa.table({"txt": data}))
    put(path, damage(path.read_bytes()))
    put(tmp_path / "in/b.jsonl", '{"txt": "sound"}')
    result = run(tmp_path / "in", tmp_path / "store")
    found = [row["txt"] for row in rows(tmp_path / "store")]
    texts = [one.decode() if isinstance(one, bytes) else one for one in found if one is not None]
    assert json.dumps("sound") in texts or "sound" in texts
    bad = {reason: one for reason, one in result.skipped.items() if reason in ("broken", "undecodable")}
    assert any(first.startswith(f"{name}: ") for one in bad.values() for first in one["first"])
    kept = [text for text in texts if text in data or json.dumps(text) in data]
    if not (name in ("a.parquet", "a.arrow") and damage is cut):  # without a footer nothing can be found
        assert kept == [text for text in data if text in kept]
        assert 15 < len(kept) < 60
        assert len(kept) > 55 or kept == data[: len(kept)], "all before the damage, or all but what it changed"
    with pytest.raises(DataError, match="Some of the input is"):
        run(tmp_path / "in", tmp_path / "strict", strict=True)


def test_a_row_that_is_not_utf8_costs_that_row(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"\xff", b"c", b"d"]).view(pa.string())
    nested = pa.ListArray.from_arrays([0, 1, 2, 4, 4], pa.array([b"a", b"b", b"\xff", b"d"]).view(pa.string()))
    table_file(tmp_path / "in/a.arrow", pa.table({"t": bad, "n": range(4), "l": nested}))
    result = run(tmp_path / "in", tmp_path / "store")
    assert [(row["n"], row["_start"]) for row in rows(tmp_path / "store")] == [(0, 0), (3, 3)]
    assert result.skipped["undecodable"] == {"count": 2, "first": ["a.arrow: row 1", "a.arrow: row 2"]}


def test_records_without_columns_are_counted(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]}).select([])
    table_file(tmp_path / "in/a.arrow", table)
    put(tmp_path / "in/b.jsonl", '{}\n{"a": 1}\n')
    result = run(tmp_path / "in", tmp_path / "store")
    assert result.documents == 1
    assert [first.split(":")[0] for first in result.skipped["empty"]["first"]] == ["a.arrow", "b.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "bytes"}, "tokenizer=bytes"),
        ({"field": "text"}, "field=text"),
        ({"bos": False}, "bos=False"),
        ({"eos": True}, "eos=True"),
        ({"format": "text"}, "no such input format of records"),
        ({"kind": "pictures"}, "text or as records"),
        ({"kind": "text", "format": "tar"}, "no such input format of text"),
    ],
)
def test_options_of_tokens_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    put(tmp_path / "in/a.jsonl", '{"a": 1}')
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "in", tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_text_and_records_do_not_mix_in_a_dataset(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", '{"text": "a"}')
    run(tmp_path / "in", tmp_path / "store")
    with pytest.raises(DataError, match="holds records, not tokens"):
        ingest([str(tmp_path / "in")], store=str(tmp_path / "store"), dataset="r", tokenizer="bytes")
    ingest([str(tmp_path / "in")], store=str(tmp_path / "store"), dataset="t", tokenizer="bytes")
    with pytest.raises(DataError, match="holds tokens, not records"):
        run(tmp_path / "in", tmp_path / "store", dataset="t")


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    table_file(tmp_path / "in/a.arrow", pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]))
    table_file(tmp_path / "in/b.arrow", pa.table({"a": [1]}))
    result = run(tmp_path / "in", tmp_path / "store")
    reason = "a.arrow: two columns have the name a; rename one of them"
    assert (result.documents, result.skipped["broken"]["first"]) == (1, [reason])


@given(kinds=st.lists(TYPES, min_size=1, max_size=4), data=st.data())
@settings(max_examples=8, deadline=None)
def test_all_columns_come_back(kinds: list[pa.DataType], data: st.DataObject) -> None:
    count, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    written = pa.table({f"c{i}": values(kind, count, rng) for i, kind in enumerate(kinds)})
    place = f"memory://{uuid.uuid4().hex}"
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, written.schema) as writer:
        writer.write_table(written, max_chunksize=data.draw(st.integers(1, 20)))
    open_store(f"{place}-in").put("a.arrow", sink.getvalue().to_pybytes())
    run(f"{place}-in", place, unit_bytes=data.draw(st.integers(100, 10_000)))
    found = pa.concat_tables(tables(place)).select(written.column_names)
    assert found.equals(written)
