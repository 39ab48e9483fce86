"""Sinks of metrics: the file for machines and the lines for people."""

import io
import json
import math
from pathlib import Path

import pytest

from fmscale.errors import FormatError
from fmscale.runtime.sinks.console import print_record
from fmscale.runtime.sinks.jsonl import JsonlSink, read_jsonl, read_last


def test_jsonl_is_appended_over_a_line_that_a_kill_tore(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write({"step": 1, "loss": math.nan, "name": "é"})
    sink.close()
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo' + b"x" * 10_000)
    assert [record["step"] for record in read_jsonl(path)] == [1]
    again = JsonlSink(path)
    again.write({"step": 2, "loss": -math.inf, "time": 0.0})
    assert [record["step"] for record in read_jsonl(path)] == [1, 2]
    again.close()
    first, second = read_jsonl(path)
    assert (first["loss"], first["name"], second) == ("nan", "é", {"step": 2, "loss": "-inf", "time": 0.0})
    assert first["time"] > 1e9


def test_a_file_with_nothing_but_a_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"y" * 9000)
    JsonlSink(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + line + "\n" + json.dumps({"step": 3}) + "\n")
    with pytest.raises(FormatError, match=r"m\.jsonl:2: not"):
        list(read_jsonl(path))


def test_console_prints_what_was_asked_for_with_units() -> None:
    stream = io.StringIO()
    names = ("step", "loss", "tokens_per_second", "mfu", "data_stall", "ckpt_blocking", "tokens", "absent")
    step = {"loss": 3.41234, "step": 1200, "tokens_per_second": 81234.5, "other": 1, "note": True}
    times = {"seconds": 2.0, "data_stall": 0.0021, "ckpt_blocking": 4.1e-06, "tokens": 4096, "mfu": 0.4123}
    print_record(step | times, stream, names)
    print_record({"note": "resumed", "ok": True, "durable_seconds": 12.3, "data_stall": 0.5}, stream)
    print_record({"x": 1}, stream, ("absent",))
    print_record({"pairs_per_second": 12.5}, stream)
    assert stream.getvalue().splitlines() == [
        "step 1,200  loss 3.412  81,234 tokens/s  mfu 41.2 %  data_stall 0.1 %  ckpt_blocking 0.000 s  4,096 tokens",
        "note resumed  ok True  durable 12 s  data_stall 0.500 s",
        "12.5 pairs/s",
    ]


def test_the_last_records_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert read_last(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert read_last(path, size=20) == [{"step": 3}]
    assert read_last(tmp_path / "none") == []


def test_lines_that_are_too_deep_are_left_out_or_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + '{"a":' * 100_000 + "\n")
    assert read_last(path, 1 << 20) == [{"step": 1}]
    with pytest.raises(FormatError, match=r"metrics.jsonl:2: not JSON"):
        list(read_jsonl(path))
