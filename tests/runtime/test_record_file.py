"""Files of records on a disk that is full for a while, or absent."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from fmscale.runtime import record_file
from fmscale.runtime.record_file import RecordFile
from fmscale.runtime.sinks.console import optional
from fmscale.runtime.sinks.jsonl import JsonlSink, read_jsonl
from tests.helpers.disks import mounted

LONG = "x" * 3000
"""Text whose size does not divide a page."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "64k") as path:
        yield path


def fill(disk: Path, left: int = 0) -> Path:
    """A file that leaves that many free bytes on the disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return ballast


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "not written" in message]


def test_a_full_disk_is_told_once_and_what_it_did_not_take_comes_when_it_has_room(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write({"step": 0})
    ballast = fill(disk, 8192)
    for step in range(1, 9):
        sink.write({"step": step, "text": LONG})
    assert path.read_bytes().endswith(b"\n"), "the line that did not fit is cut off, should nothing be written again"
    assert [record["step"] for record in read_jsonl(path)] == [0, 1, 2, 3, 4]
    ballast.unlink()
    sink.write({"step": 9})
    assert [record["step"] for record in read_jsonl(path)] == list(range(10))
    fill(disk)
    sink.write({"step": 10, "text": LONG * 4})
    assert len(told(caplog)) == 1
    assert f"{path} is not written: No space left on device" in told(caplog)[0]
    sink.close()
    assert sink.lost == 1
    assert f"{path} lacks 1 records" in caplog.messages
    assert [record["step"] for record in read_jsonl(path)] == list(range(10)), "closed without a torn line"


def test_no_more_is_kept_in_memory_than_said(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_file, "KEPT_BYTES", 4 * len(LONG))
    fill(disk)
    sink = JsonlSink(disk / "metrics.jsonl")
    for step in range(10):
        sink.write({"step": step, "text": LONG})
    assert sink.lost == 7
    (disk / "ballast").unlink()
    sink.close()
    assert [record["step"] for record in read_jsonl(disk / "metrics.jsonl")] == [7, 8, 9]


def test_an_arrow_stream_goes_on_after_its_last_whole_batch(disk: Path) -> None:
    schema = pa.schema([("data", pa.binary())])
    batches = [pa.record_batch([pa.array([bytes([i]) * 3000])], schema=schema) for i in range(6)]
    file = RecordFile(disk / "x.arrow", begin=schema.serialize().to_pybytes())
    for i, batch in enumerate(batches):
        if i == 2:
            ballast = fill(disk, 4096)
        if i == 5:
            ballast.unlink()
        file.append(batch.serialize().to_pybytes())
    file.close()
    with pa.ipc.open_stream((disk / "x.arrow").read_bytes()) as reader:
        assert reader.read_all() == pa.Table.from_batches(batches)


def test_a_folder_that_goes_and_comes_back_and_one_that_cannot_be_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write({"step": 0})
    shutil.rmtree(path.parent)
    (tmp_path / "run").write_text("in its place")
    for step in (1, 2):
        sink.write({"step": step})
    (tmp_path / "run").unlink()
    sink.write({"step": 3})
    sink.close()
    assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3]
    assert [message.split(": ")[1] for message in told(caplog)] == [
        "it was deleted. The run goes on; what can be is written later."
    ]


def test_a_terminal_that_is_gone_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def gone(record: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    show = optional(gone)
    with caplog.at_level(logging.WARNING):
        show({"step": 1})
        show({"step": 2})
    assert caplog.messages == ["progress is not shown: Broken pipe. The run goes on."]
    with pytest.raises(ZeroDivisionError):
        optional(lambda record: print(1 // 0))({})
