"""Tables with changed bytes: each document is right or skipped, and a file that kills its reader loses only its own
documents.
"""

import io
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmscale.data.ingest import ingest
from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.blocks import RecordBlock, load
from fmscale.data.ingest.formats import Bad, FilePart, RawDocument, arrow_footer, read
from fmscale.data.ingest.plan import Work
from fmscale.data.ingest.sources import list_sources
from fmscale.errors import RankError
from tests.data.ingest.corpora import arrow, parquet, put, sentences, wait_for

TEXTS = [f"row {i:x}" for i in range(60)]
"""ASCII, below 128 bytes a batch of 15: a byte of 128 or more is detected at any place."""


def table(kind: str) -> bytes:
    """A table file of a format, with four batches."""
    columns: dict[str, Any] = {
        "dictionary": pa.array(TEXTS).dictionary_encode(),
        "view": pa.array(TEXTS, pa.string_view()),
        "large": pa.array(TEXTS, pa.large_string()),
        "struct": pa.StructArray.from_arrays([pa.array(TEXTS)], names=["text"]),
    }
    content = pa.table({"text": columns.get(kind, pa.array(TEXTS))})
    file = io.BytesIO()
    if kind == "parquet":
        options = {"compression": "none", "write_page_checksum": True, "use_dictionary": False}
        pq.write_table(content, file, row_group_size=15, **options)
        return file.getvalue()
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=15)
    return file.getvalue()


def work(path: Path) -> Work:
    return Work(file=list_sources([str(path)]).files[0], index=0, of=1)


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Reading]:
    with closing(Reading([str(tmp_path)], "text")) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["file", "stream", "dictionary", "view", "large", "struct", "parquet"])
def test_documents_of_a_damaged_table_are_right_or_skipped(tmp_path: Path, kind: str) -> None:
    data = table(kind)
    rng = random.Random(kind)
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    outcomes: Counter[str] = Counter()
    field = "text.text" if kind == "struct" else "text"
    # The names in the schema stay: a column of another name is refused and ends the job.
    names = [place for place in range(len(data)) if data[place : place + 4] == b"text"]
    kept = {place + i for place in names for i in range(4)}
    places = [place for place in range(len(data)) if place not in kept]
    with closing(Reading([str(tmp_path)], field)) as reading:
        for _ in range(40):
            damaged = bytearray(data)
            for place in rng.sample(places, rng.randint(1, 4)):
                damaged[place] = rng.randrange(128, 256)
            put(path, bytes(damaged))
            found = list(reading.documents(work(path)))
            documents = [item for item in found if isinstance(item, RawDocument)]
            bad = [item for item in found if isinstance(item, Bad)]
            assert all(item.text == TEXTS[item.start] for item in documents)
            assert len(documents) == len(TEXTS) or bad, "what is missing is counted"
            outcomes.update({item.reason for item in bad} or {"whole"})
            outcomes["killed"] += any("ended its reader" in item.where for item in bad)
    assert outcomes["broken"] > 20
    assert outcomes["killed"] == 0, "validation finds it first"


def readers() -> list[psutil.Process]:
    """Living readers of this process."""
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in alive if "fmscale.data.ingest.reader" in one.cmdline()]


def reader() -> psutil.Process:
    """The only living reader."""
    (one,) = readers()
    return one


@pytest.mark.parametrize("kind", ["dictionary", "struct", "parquet", "stream"])
def test_records_of_a_damaged_table_are_right_or_counted(tmp_path: Path, kind: str) -> None:
    """A change within a value cannot be seen; any other costs rows that are named, and never the job."""
    data, rng = table(kind), random.Random(kind)
    (tmp_path / "blocks").mkdir()
    with closing(Reading([str(tmp_path)], None)) as opened:
        for number in range(15):
            changed = bytearray(data)
            for _ in range(1 + number % 3):
                changed[rng.randrange(len(data))] = rng.randrange(256)
            one = work(put(tmp_path / f"{number}.{'parquet' if kind == 'parquet' else 'arrow'}", bytes(changed)))
            items = list(opened.documents(one, str(tmp_path / "blocks")))
            rows = sum(item.rows for item in items if isinstance(item, RecordBlock))
            assert rows == 60 or any(isinstance(item, Bad) for item in items), (kind, number)
            for item in items:
                if isinstance(item, RecordBlock):
                    batch, origin = load(item)
                    starts = origin["start"].to_pylist()
                    assert (batch.num_rows, starts == sorted(starts)) == (item.rows, True)


def long_table(path: Path) -> Path:
    """A table of many chunks."""
    return arrow(path, [f"{i} " * 200 for i in range(6000)], rows=500)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_file_that_ends_its_reader_is_broken_and_the_next_one_is_read(
    reading: Reading, tmp_path: Path, number: signal.Signals
) -> None:
    documents = reading.documents(work(long_table(tmp_path / "a.arrow")))
    first = next(documents)
    assert isinstance(first, RawDocument)
    os.kill(reader().pid, number)
    *rest, last = documents
    assert all(isinstance(item, RawDocument) for item in rest)
    assert isinstance(last, Bad)
    assert (last.reason, number.name in last.where) == ("broken", True)
    assert f"after {len(rest) + 1} rows" in last.where
    again = list(reading.documents(work(parquet(tmp_path / "b.parquet", ["good", "better"]))))
    assert again == [RawDocument(b"good", 0, 1), RawDocument(b"better", 1, 2)]


def test_a_reader_that_is_killed_from_outside_is_no_fault_of_the_file(reading: Reading, tmp_path: Path) -> None:
    documents = reading.documents(work(long_table(tmp_path / "a.arrow")))
    next(documents)
    reader().kill()
    with pytest.raises(RankError, match=r"a\.arrow") as caught:
        list(documents)
    assert caught.value.found == "signal 9"


def test_a_table_that_is_left_in_the_middle_does_not_disturb_the_next(reading: Reading, tmp_path: Path) -> None:
    long = work(long_table(tmp_path / "a.arrow"))
    next(reading.documents(long))
    number = reader().pid
    rows = [f"row {i}" for i in range(5)]
    expected = [RawDocument(row.encode(), i, i + 1) for i, row in enumerate(rows)]
    assert list(reading.documents(work(parquet(tmp_path / "b.parquet", rows)))) == expected
    assert len(list(reading.documents(long))) == 6000
    assert reader().pid == number


@pytest.mark.parametrize("options", [{"tokenizer": "bytes"}, {"kind": "records"}])
def test_a_job_goes_on_without_the_file_that_ended_its_reader(tmp_path: Path, options: dict[str, str]) -> None:
    long_table(tmp_path / "in/a.arrow")
    parquet(tmp_path / "in/b.parquet", ["good", "better"])
    put(tmp_path / "in/c.jsonl", '{"text": "best"}')
    killed: list[psutil.Process] = []

    def kill_one(phase: str, done: int, total: int) -> None:
        """Act at the first sign of life after a batch of the long table."""
        if phase == "writing" and not killed and readers():
            killed.append(reader())
            killed[0].send_signal(signal.SIGSEGV)
            wait_for(lambda: killed[0].status() == psutil.STATUS_ZOMBIE, "its end")

    result = ingest(
        [str(tmp_path / "in")],
        store=str(tmp_path / "store"),
        dataset="d",
        **options,  # type: ignore[arg-type]
        workers=1,
        progress=kill_one,
    )
    assert result.skipped["broken"]["count"] == 1
    assert "a.arrow: after" in result.skipped["broken"]["first"][0]
    assert 3 < result.documents < 6003
    assert killed
    assert not readers()


def test_damage_met_while_a_tokenizer_is_trained_costs_that_file(tmp_path: Path) -> None:
    for i in range(6):
        data = bytearray(arrow(tmp_path / f"in/{i}.arrow", sentences("s", 20)).read_bytes())
        if i % 2:
            data[400:-300:97] = b"\xff" * len(data[400:-300:97])
        put(tmp_path / f"in/{i}.arrow", bytes(data))
    result = ingest([str(tmp_path / "in")], store=str(tmp_path / "store"), dataset="d", tokenizer="bpe:300")
    assert result.documents == 60
    assert sum(one["count"] for one in result.skipped.values()) >= 3


def table_bytes(kind: str) -> bytearray:
    """Forty rows in four batches or row groups."""
    table, sink = pa.table({"text": [f"d{i}" for i in range(40)]}), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=10)
    else:
        make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    return bytearray(sink.getvalue())


def found_in(data: bytes, format: str, of: int = 1) -> tuple[list[str], list[str]]:
    """Texts, and the reasons for missing documents."""
    pieces = [FilePart(source="a", format=format, field="text", index=i, of=of) for i in range(of)]
    found = [one for piece in pieces for one in read(io.BytesIO(data), piece)]
    texts = [one.text for one in found if isinstance(one, RawDocument)]
    return texts, [one.reason for one in found if isinstance(one, Bad)]


def test_rows_that_a_damaged_table_leaves_out_are_not_lost_in_silence() -> None:
    whole = [f"d{i}" for i in range(40)]
    for kind in ("file", "stream", "parquet"):
        format = "parquet" if kind == "parquet" else "arrow"
        assert found_in(bytes(table_bytes(kind)), format, of=1 if kind == "stream" else 3) == (whole, [])
    stream = table_bytes("stream")
    marks = [match.start() for match in re.finditer(b"\xff\xff\xff\xff", stream)]
    assert found_in(bytes(stream[:-8]), "arrow") == (whole, ["broken"]), "without the mark of its end"
    stream[marks[2] + 4 : marks[2] + 8] = bytes(4)
    assert found_in(bytes(stream), "arrow") == (whole[:10], ["broken"]), "an end before the end"
    file = table_bytes("file")
    file[first_block(file) - 4] = 3
    assert found_in(bytes(file), "arrow") == (whole[:30], ["broken"]), "a batch less in the footer"
    assert found_in(bytes(file), "arrow", of=2)[1] == ["broken"] * 2
    file = table_bytes("file")
    file[first_block(file) + 24 + 7] = 0xFF
    texts, reasons = found_in(bytes(file), "arrow", of=2)
    assert set(reasons) == {"broken"}, "the second batch before the file's begin"
    assert set(texts) <= set(whole)


def first_block(file: bytearray) -> int:
    """Place of the first batch's entry in the footer, after the number of entries."""
    blocks = arrow_footer._blocks(io.BytesIO(file))[1]
    return file.rindex(b"".join(arrow_footer.BLOCK.pack(*block) for block in blocks))


def test_a_column_without_a_value_is_empty() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.nulls(3)}), sink)
    assert found_in(sink.getvalue(), "parquet") == ([], ["empty"] * 3)
