"""Metrics and their sinks."""

import io
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import FormatError
from fmscale.runtime.metrics import Metrics, percentile
from fmscale.runtime.sinks.sinks import ConsoleSink, JsonlSink, read_jsonl, read_last


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.floats(0, 100),
)
def test_percentile_is_numpys(values: list[float], percent: float):
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_take_gives_what_happened_since_the_last():
    metrics = Metrics()
    metrics.add("bytes", 10)
    metrics.set("depth", 3)
    for seconds in (1.0, 2.0, 3.0):
        metrics.observe("data_stall", seconds)
    assert metrics.take() == {
        "bytes": 10,
        "depth": 3,
        "data_stall.seconds": 6.0,
        "data_stall.count": 3,
        "data_stall.max": 3.0,
        "data_stall.p50": 2.0,
        "data_stall.p99": pytest.approx(2.98),
    }
    metrics.add("bytes", 5)
    metrics.observe("data_stall", 0.5)
    taken = metrics.take()
    assert (taken["bytes"], taken["depth"], taken["data_stall.max"]) == (5, 3, 0.5)
    assert (metrics.total("bytes"), metrics.total("data_stall"), metrics.total("nothing")) == (15, 6.5, 0)
    assert "data_stall.max" not in metrics.take()


def test_time_counts_blocks_that_raise():
    metrics = Metrics()
    with pytest.raises(ValueError, match="x"), metrics.time("save"):
        raise ValueError("x")
    taken = metrics.take()
    assert taken["save.count"] == 1
    assert taken["save.seconds"] > 0


def test_threads_lose_nothing():
    metrics = Metrics()

    def count() -> None:
        for _ in range(5000):
            metrics.add("rows")
            metrics.observe("read", 1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (metrics.total("rows"), metrics.total("read")) == (20000, 20000.0)


def test_jsonl_is_appended_over_a_line_that_a_kill_tore(tmp_path: Path):
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


def test_a_file_with_nothing_but_a_torn_line_starts_anew(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"y" * 9000)
    JsonlSink(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_broken_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + line + "\n" + json.dumps({"step": 3}) + "\n")
    with pytest.raises(FormatError, match=r"m\.jsonl:2: not"):
        list(read_jsonl(path))


def test_console_prints_what_was_asked_for_with_units():
    stream = io.StringIO()
    names = ("step", "loss", "tokens_per_second", "mfu", "data_stall", "ckpt_blocking", "tokens", "absent")
    step = {"loss": 3.41234, "step": 1200, "tokens_per_second": 81234.5, "other": 1, "note": True}
    times = {"seconds": 2.0, "data_stall": 0.0021, "ckpt_blocking": 4.1e-06, "tokens": 4096, "mfu": 0.4123}
    ConsoleSink(names, stream).write(step | times)
    ConsoleSink(stream=stream).write({"note": "resumed", "ok": True, "durable_seconds": 12.3, "data_stall": 0.5})
    ConsoleSink(("absent",), stream).write({"x": 1})
    assert stream.getvalue().splitlines() == [
        "step 1,200  loss 3.412  81,234 tokens/s  mfu 41.2 %  data_stall 0.1 %  ckpt_blocking 0.000 s  4,096 tokens",
        "note resumed  ok True  durable 12 s  data_stall 0.500 s",
    ]


def test_the_last_records_of_a_file_that_is_being_written(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert read_last(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert read_last(path, size=20) == [{"step": 3}]
    assert read_last(tmp_path / "none") == []
