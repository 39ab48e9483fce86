"""The largest document: longer ones are counted, their neighbours kept, and memory is bounded by its size."""

import gzip
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fmscale.data.ingest.formats import Bad, FilePart, Item, RawBatch, RawDocument, RawRecord, detect, jsonl, read
from fmscale.errors import ConfigError
from tests.data.ingest.corpora import arrow, lines, parquet, put
from tests.data.ingest.test_ingest import run

MOST = 1000
LONG = "x" * (MOST + 1)
FITS = 'say "a"\n' * (MOST // 8)
"""A text of MOST bytes, whose JSON is longer."""


def found(path: Path, field: str | None = "text", **more: Any) -> list[Item]:
    format = more.pop("format", None) or detect(path.name, "text" if field else "records")
    with path.open("rb") as file:
        return list(read(file, FilePart(source=path.name, format=format, field=field, max_document=MOST, **more)))


def told(items: list[Item]) -> list[str]:
    """The texts, and the reasons for missing texts."""
    return [item.text if isinstance(item, RawDocument) else getattr(item, "reason", "") for item in items]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "a.arrow"])
def test_a_document_that_is_too_long_costs_itself(tmp_path: Path, name: str) -> None:
    texts, path = ["first", FITS, LONG, "last", LONG], tmp_path / name
    data = lines(texts)
    match name.split(".")[1:]:
        case ["jsonl", *packed]:
            put(path, {"": data, "gz": gzip.compress(data), "zst": zstandard.compress(data)}["".join(packed)])
        case ["json"]:
            put(path, json.dumps([{"text": text} for text in texts]))
        case ["parquet"]:
            parquet(path, texts)
        case _:
            arrow(path, texts)
    items = found(path, format="json" if name == "a.json" else None)
    assert told(items) == ["first", FITS, "long", "last", "long"]
    if name == "a.jsonl":
        for of in (2, 3, 17, 400):
            assert [one for index in range(of) for one in found(path, index=index, of=of)] == items


def test_a_text_or_a_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    assert told(found(put(tmp_path / "a.txt", FITS))) == [FITS]
    for name, data in (("b.txt", LONG.encode()), ("b.txt.gz", gzip.compress(LONG.encode() * 10)[:-9])):
        assert told(found(put(tmp_path / name, data))) == ["long"]
    file = BytesIO(LONG.encode() * 10_000)
    assert told(list(read(file, FilePart(source="a.txt", format="text", field="text", max_document=MOST)))) == ["long"]
    assert file.tell() <= MOST + 1


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("sign", ["", "é", "三", "\U0001f600"])
def test_large_lines_give_the_same_texts(sign: str, escaped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines above an eighth of the largest document are parsed as Latin-1."""
    text = f'{sign} "quoted" \\ {sign}\n' * 20
    for value in ({"text": text}, {"é.text": text}, {"é": {"text": text}}, {"n": "9", "text": text[::-1]}):
        field = "text" if "text" in value else "é.text"
        data = json.dumps(value, ensure_ascii=escaped).encode()
        for most in (len(data), 100 * len(data)):
            part = FilePart(source="a.jsonl", format="jsonl", field=field, max_document=most)
            expected = text[::-1] if "n" in value else text
            assert jsonl.content_of(data, part, 0) == expected.encode()
    bad = json.dumps({"text": text}).encode().replace(b"quoted", b"quot\xff\xfe", 1)
    part = FilePart(source="a.jsonl", format="jsonl", field="text", max_document=len(bad))
    assert isinstance(jsonl.content_of(bad, part, 0), Bad)


@pytest.mark.parametrize("values", ["[]," * 2000 + "0", '{"a":1},' * 900 + "0", "1," * 3000 + "0"])
def test_a_line_of_many_small_values_is_too_long(values: str) -> None:
    """A list of empty lists takes 20 times its JSON in memory."""
    data = f'{{"text": "a", "n": [{values}]}}'.encode()
    small, large = (FilePart(source="a", format="jsonl", field="text", max_document=n) for n in (10_000, 10_000_000))
    assert getattr(jsonl.content_of(data, small, 5), "reason", "") == "long"
    assert jsonl.content_of(data, large, 5) == b"a"
    text = json.dumps({"text": "[1, 2, {3}]," * 500}).encode()
    assert isinstance(jsonl.content_of(text, small, 5), bytes), "signs of JSON within a text are text"


def test_records_that_are_too_long_cost_themselves(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", LONG, "y"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = found(tmp_path / "a.parquet", None)
    batches = [(item.start, item.batch["a"].to_pylist()) for item in rows if isinstance(item, RawBatch)]
    assert batches == [(0, ["x"]), (2, ["y"])]
    assert [item for item in rows if isinstance(item, Bad)] == [Bad("long", f"row 1: more than {MOST} bytes")]
    put(tmp_path / "a.jsonl", "".join(json.dumps({"a": text}) + "\n" for text in ("x", LONG, "y")))
    items = found(tmp_path / "a.jsonl", None)
    assert [item.values["a"] for item in items if isinstance(item, RawRecord)] == ["x", "y"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, size in (
            ("1.txt", 5),
            ("2.txt", 600),
            ("2.json", 600),
            ("2.cls", 1),
            ("3.txt", MOST - 1),
            ("4.txt", 2000),
        ):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, BytesIO(b"x" * size))
    items = found(tmp_path / "a.tar", None)
    shapes = [len(item.values["txt"]) if isinstance(item, RawRecord) else item for item in items]
    too_long = [Bad("long", f"{key}: more than {MOST} bytes") for key in "24"]
    assert shapes == [5, too_long[0], MOST - 1, too_long[1]]
    put(tmp_path / "in/a.jpg", b"x" * 900)
    put(tmp_path / "in/a.txt", b"x" * 200)
    put(tmp_path / "in/b.jpg", b"x" * 900)
    result = run(tmp_path / "in", tmp_path / "store", kind="records", tokenizer=None, max_document=MOST)
    assert (result.documents, result.skipped["long"]["count"]) == (1, 1)


def test_the_option_reaches_the_writers_and_is_checked(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines(["short", LONG]))
    put(tmp_path / "in/b.txt", LONG)
    result = run(tmp_path / "in", tmp_path / "store", max_document=MOST, workers=2, unit_bytes=100)
    assert (result.documents, result.skipped["long"]["count"]) == (1, 2)
    assert result.skipped["long"]["first"][1] == f"b.txt: more than {MOST} bytes"
    assert run(tmp_path / "in", tmp_path / "other").documents == 3
    with pytest.raises(ConfigError, match="at least one byte"):
        run(tmp_path / "in", tmp_path / "third", max_document=0)


def line_bomb(path: Path) -> None:
    with path.open("wb") as out, zstandard.ZstdCompressor().stream_writer(out) as packed:
        packed.write(lines(["a"]) + b'{"text": "')
        for _ in range(1000):
            packed.write(b"a" * 1_000_000)
        packed.write(b'"}\n' + lines(["b"]))


TEXT = "".join(f"{number:09d} words\n" for number in range(2 << 20))
"""32 MiB."""

LARGE: dict[str, tuple[str, Callable[[Path], object], dict[str, int]]] = {
    "line of 1 GB": ("a.jsonl.zst", line_bomb, {"long": 1}),
    "text with a sign outside of the BMP": ("a.txt", lambda path: path.write_text(TEXT + "\U0001f600"), {}),
    "line with such a sign": ("a.jsonl", lambda path: path.write_bytes(lines([TEXT + "\U0001f600"])), {}),
    "array": ("a.json", lambda path: path.write_text(json.dumps([TEXT, "b", TEXT])), {}),
    "text of 200 MB": ("a.txt", lambda path: path.write_bytes(TEXT.encode() * 6), {"long": 1}),
    "row of Arrow": ("a.arrow", lambda path: arrow(path, ["a", TEXT], 1), {}),
}


PROGRAM = """
import json, resource, sys
from pathlib import Path
from fmscale.data.ingest import ingest
result = ingest(**json.loads(sys.argv[1]))
own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
reader = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([{reason: one["count"] for reason, one in result.skipped.items()}, 1024 * max(own, reader)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    path, make, skipped = LARGE[name]
    put(tmp_path / "in/small.txt", "text")
    make(tmp_path / "in" / path)
    job = {"paths": [str(tmp_path / "in")], "store": str(tmp_path / "store"), "dataset": "d", "tokenizer": "bytes"}
    line = [sys.executable, "-c", PROGRAM, json.dumps({**job, "workers": 1})]
    seen, peak = json.loads(subprocess.check_output(line, text=True, timeout=300))
    assert seen == skipped
    assert peak < 250e6 + 4 * (64 << 20 if skipped else len(TEXT))
