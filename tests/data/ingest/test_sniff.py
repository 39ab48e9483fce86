"""Formats by first bytes: unknown extensions, JSON arrays, folders of `save_to_disk`; guesses are reported."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.ingest import ingest
from fmscale.data.ingest.formats import Bad, FilePart, Item, RawDocument, array, detect, read
from fmscale.data.ingest.formats.sniff import HEAD_BYTES, sniff
from fmscale.errors import DataError
from tests.data.ingest.corpora import arrow, lines, parquet, put
from tests.data.ingest.test_ingest import run, texts

LONG = json.dumps({"text": "long " * HEAD_BYTES}).encode()
RECORDS = [{"text": "first"}, {"text": "zweite Zeile: ä"}, {"text": "三"}]
GEO = b'{"type": "FeatureCollection", "features": [\n{"type": "Feature"},\n{"type": "Feature"}\n]}\n'


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (lines(["one"]), "jsonl"),
        (lines(["one", "two"]), "jsonl"),
        (lines(["one", "two"], "other"), "jsonl"),
        (b"\xef\xbb\xbf\n \r\n" + lines(["one", "two"]), "jsonl"),
        (lines(["one", "two"]).replace(b"\n", b"\r\n\r\n"), "jsonl"),
        (b'{"text": "broken\n' + lines(["two", "three"]), "jsonl"),
        (lines(["one", "two"])[:-5], "jsonl"),
        (LONG, "jsonl"),
        (LONG + b"\n" + LONG, "jsonl"),
        (json.dumps(RECORDS).encode(), "json"),
        (json.dumps(RECORDS, indent=2).encode(), "json"),
        (b" \n[ " + LONG + b"]", "json"),
        (b'["first", "second"]', "json"),
        (b'[{"text": "cut', "json"),
        (b"[]", "json"),
        (b"[1] A. Author: a reference", "text"),
        (b"[1, 2, 3]", "json"),
        (b"[1] Knuth, D.\n", "text"),
        (b'["Yes", he said, and left.]', "text"),
        (b'[null, {"text": "a"}]', "json"),
        (b'[section]\nkey = "value"', "text"),
        (b'["quoted"] and more', "text"),
        (json.dumps({"name": "package", "version": 1}, indent=2).encode(), "text"),
        (b'{"name": "package on one line"}', "text"),
        (b'{"name": "package on one line' + b"x" * HEAD_BYTES + b'"}', "text"),
        (b"{% block a %}\n{% endblock %}", "text"),
        (GEO, "text"),
        (b"{" * HEAD_BYTES * 2, "text"),
        (b"plain", "text"),
        (b"\n\n", "text"),
        (b"ELF\0\1", "binary"),
        ('{"text": "x"}'.encode("utf-16"), "binary"),
    ],
)
def test_first_bytes_decide(data: bytes, format: str) -> None:
    assert sniff(io.BytesIO(data), "data.json", "text") == format
    for name, compress in (("data.json.gz", gzip.compress), ("data.zst", zstandard.compress)):
        assert sniff(io.BytesIO(compress(data)), name, "text") == format


def test_tables_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for make in (parquet, arrow, lambda path, rows: arrow(path, rows, stream=True)):
        data = make(tmp_path / "x", ["one", "two"]).read_bytes()
        assert sniff(io.BytesIO(data), "x", "text") == ("parquet" if data[:4] == b"PAR1" else "arrow")
        assert sniff(io.BytesIO(gzip.compress(data)), "x.gz", "text") == "binary"


def test_a_damaged_compressed_beginning_decides_as_far_as_it_goes() -> None:
    frames = b"".join(zstandard.compress(lines([f"row {i}"])) for i in range(20))
    assert sniff(io.BytesIO(frames[:-5]), "data.json.zst", "text") == "jsonl"
    assert sniff(io.BytesIO(b"nonsense"), "data.json.gz", "text") == "text"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("c4-train.00000-of-01024.json.gz", ""),
        ("data.json", ""),
        ("part-00000", ""),
        ("table.csv", ""),
        ("x.gz", ""),
        ("README", "text"),
        ("Makefile", "text"),
        ("main.cu", "text"),
        ("main.py.zst", "text"),
        ("data.json.bz2", "binary"),
    ],
)
def test_names_that_tell(name: str, found: str) -> None:
    assert detect(name) == found


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("c4-train.00000-of-01024.json.gz", gzip.compress(lines(["first", "second"]), mtime=0)),
        ("data.json", lines(["first", "second"])),
        ("part-00000", lines(["first", "second"])),
        ("dump.txt", lines(["first", "second"])),
        ("dump.txt.gz", gzip.compress(lines(["first", "second"]), mtime=0)),
        ("train.jsonl.1", lines(["first", "second"])),
        ("data.json", b'["first", "second"]'),
        ("data.json.zst", zstandard.compress(lines(["first", "second"]))),
        ("data.json", json.dumps([{"text": "first"}, {"text": "second"}]).encode()),
        (
            "data.json.gz",
            gzip.compress(json.dumps([{"text": "first"}, {"text": "second"}], indent=1).encode(), mtime=0),
        ),
        ("data.jsonl", json.dumps([{"text": "first"}, {"text": "second"}], indent=1).encode()),
    ],
)
def test_records_under_any_name_are_documents(tmp_path: Path, name: str, data: bytes) -> None:
    put(tmp_path / "in" / name, data)
    result = run(tmp_path / "in", tmp_path / "store", unit_bytes=16)
    assert sorted(texts(tmp_path / "store").values()) == ["first", "second"]
    assert (result.skipped, [one["first"] for one in result.guessed.values()]) == ({}, [[name]])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.txt", lines(["first", "second"]) + b'{"text": "thi'),
        ("rows.jsonl", b'["a", "header"]\n' + lines(["first", "second"])),
    ],
)
def test_a_line_that_is_no_record_costs_itself(tmp_path: Path, name: str, data: bytes) -> None:
    put(tmp_path / "in" / name, data)
    result = run(tmp_path / "in", tmp_path / "store")
    assert sorted(texts(tmp_path / "store").values()) == ["first", "second"]
    assert {reason: one["count"] for reason, one in result.skipped.items()} == {"broken": 1}


def test_text_by_a_guess_is_said_and_a_second_ingest_says_it_again(tmp_path: Path) -> None:
    package = json.dumps({"name": "x"}, indent=2)
    kept = {
        "package.json": package,
        "a.txt": '{"text": "of a text file"}\n',
        "b.txt": '{"text": "of a text file"}\n{and of braces}\n',
        "c.txt": '["an", "array"]\n',
        "Makefile": "all:",
        "b.csv": "a,b",
    }
    for name, text in kept.items():
        put(tmp_path / "in" / name, text)
    put(tmp_path / "in/program", b"\x7fELF\0")
    put(tmp_path / "in/nothing", b"")
    for new in (True, False):
        result = run(tmp_path / "in", tmp_path / "store")
        assert result.new == new
        assert {name: text for (name, _), text in texts(tmp_path / "store").items()} == kept
        assert result.guessed == {"text": {"count": 2, "first": ["b.csv", "package.json"]}}
        assert {reason: one["first"] for reason, one in result.skipped.items()} == {
            "binary": ["program"],
            "empty": ["nothing"],
        }


def test_a_format_that_is_said_is_no_guess(tmp_path: Path) -> None:
    put(tmp_path / "in/data.json", lines(["first", "second"]))
    result = run(tmp_path / "in", tmp_path / "store", format="text")
    assert (result.documents, result.guessed) == (1, {})
    put(tmp_path / "array/data", json.dumps(RECORDS))
    assert run(tmp_path / "array", tmp_path / "other", format="json").documents == 3
    with pytest.raises(DataError, match="hold no document"):
        run(tmp_path / "array", tmp_path / "third", format="jsonl")


def test_folders_of_save_to_disk_are_their_rows(tmp_path: Path) -> None:
    """The layout that Hugging Face's `datasets` writes: streams, two descriptions, caches of mappings."""
    for split in ("train", "test"):
        arrow(
            tmp_path / f"in/{split}/data-00000-of-00001.arrow",
            [f"{split} {i}" for i in range(6)],
            stream=True,
        )
        arrow(tmp_path / f"in/{split}/cache-0123456789abcdef.arrow", ["mapped"], stream=True)
        put(tmp_path / f"in/{split}/dataset_info.json", '{"features": {}}')
        put(tmp_path / f"in/{split}/state.json", json.dumps({"_data_files": []}, indent=2))
    put(tmp_path / "in/dataset_dict.json", '{"splits": ["train", "test"]}')
    put(tmp_path / "in/elsewhere/state.json", '{"of": "a\\n program"}')
    result = run(tmp_path / "in", tmp_path / "store")
    found = texts(tmp_path / "store")
    assert sorted(text for (name, _), text in found.items() if name.endswith(".arrow")) == sorted(
        f"{split} {i}" for split in ("train", "test") for i in range(6)
    )
    assert result.documents == 13
    assert result.skipped["metadata"]["count"] == 7
    assert result.guessed["text"]["first"] == ["elsewhere/state.json"]
    assert run(tmp_path / "in/train", tmp_path / "one").documents == 6


def test_a_corpus_of_nothing_but_binary_files_is_named(tmp_path: Path) -> None:
    put(tmp_path / "in/program", b"\x7fELF\0")
    with pytest.raises(DataError, match="nothing to ingest") as caught:
        ingest([str(tmp_path / "in")], store=str(tmp_path / "store"), dataset="d")
    assert "1 binary" in str(caught.value.found)


def elements(data: bytes, field: str = "text") -> list[Item]:
    piece = FilePart(source="a.json", format="json", field=field)
    return list(read(io.BytesIO(data), piece))


def text_of(value: Any) -> str | None:
    """Expected text of an element."""
    text = value["text"] if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


VALUES = st.recursive(st.text() | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=2))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.fixed_dictionaries({"text": st.text()}, optional={"x": VALUES}) | VALUES, max_size=6),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    ascii=st.booleans(),
    bom=st.booleans(),
)
def test_elements_are_jsons_own_at_any_chunk(
    values: list[Any], chunk: int, indent: int | None, ascii: bool, bom: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    data = b"\xef\xbb\xbf" * bom + text.encode("utf-8") + b" \n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array, "CHUNK_BYTES", chunk)
        found = elements(data)
    expected = [text_of(value) for value in values] or [None]
    assert [item.text if isinstance(item, RawDocument) else None for item in found] == expected
    for item in found:
        if isinstance(item, RawDocument):
            assert text_of(json.loads(data[item.start : item.stop])) == item.text


@pytest.mark.parametrize(
    ("tail", "reason", "where"),
    [
        (b"", "broken", "ends inside"),
        (b", ", "broken", "ends inside|Expecting value"),
        (b', {"text": "cut', "broken", "Unterminated"),
        (b' {"text": "no comma"}]', "broken", "no comma"),
        (b', {"text": "\xff"}]', "undecodable", "byte"),
        (b', {"text" 5}]', "broken", "delimiter"),
        (b", " + b"[" * 100_000, "broken", "recursion"),
        (b"] more", "broken", "outside"),
    ],
)
def test_damage_in_an_array_costs_what_follows(tail: bytes, reason: str, where: str) -> None:
    *good, bad = elements(json.dumps(RECORDS).encode().removesuffix(b"]") + tail)
    assert [item.text for item in good if isinstance(item, RawDocument)] == [one["text"] for one in RECORDS]
    assert isinstance(bad, Bad)
    assert bad.reason == reason
    assert any(one in bad.where for one in where.split("|")), bad.where


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize(
    "element",
    [
        json.dumps({"text": 'a, "b" \\' * 1000 + "]}", "n": [[1], {"m": "}"}]}),
        json.dumps('quoted " and ] ' * 1000),
        json.dumps([[], {}, "]"] * 3000),
    ],
)
def test_an_element_that_is_too_long_costs_itself(monkeypatch: pytest.MonkeyPatch, chunk: int, element: str) -> None:
    monkeypatch.setattr(array, "CHUNK_BYTES", chunk)
    data = f'[{{"text": "a"}}, {element} , "b",{element}]'.encode()
    first, long, last, again = elements_below(5000, data)
    assert [getattr(item, "text", "") for item in (first, last)] == ["a", "b"]
    assert long == Bad("long", "byte 16: more than 5000 bytes")
    assert isinstance(again, Bad)
    cut = elements_below(5000, data[:-30])
    assert [item.reason for item in cut if isinstance(item, Bad)] == ["long", "broken"]


def elements_below(most: int, data: bytes) -> list[Item]:
    """Elements with a largest document."""
    return list(read(io.BytesIO(data), FilePart(source="a.json", format="json", field="text", max_document=most)))


def test_the_rest_of_a_compressed_array_is_read_before_its_damage() -> None:
    text = json.dumps([{"text": f"row {i}"} for i in range(200)]).encode()
    frames = [zstandard.compress(text[begin : begin + 100]) for begin in range(0, len(text), 100)]
    piece = FilePart(source="a.json.zst", format="json", field="text")
    *good, bad = read(io.BytesIO(b"".join(frames)[:-5]), piece)
    assert len(good) > 190
    assert isinstance(bad, Bad)
    assert bad.reason == "broken"


def test_what_is_no_array_is_named() -> None:
    (bad,) = elements(b'{"text": "an object"}')
    assert isinstance(bad, Bad)
    assert "does not begin as an array" in bad.where
