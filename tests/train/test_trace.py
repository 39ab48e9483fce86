"""`train.trace`: spans of the named steps in their lanes, nested and in order; nothing is changed outside of them."""

import gzip
import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fmscale.checkpoint.saver import SaveReport
from fmscale.checkpoint.snapshot.snapshot import SnapshotSlot
from fmscale.config.checks import InvalidField
from fmscale.config.train import TrainConfig
from fmscale.objectives.protocol import Inputs
from fmscale.store.tiers.fetch import Fetcher
from fmscale.train.trace import StepTrace
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, train_here, write_config


class Engine:
    """The methods of an engine that are timed."""

    def before(self) -> None: ...
    def forward(self) -> None: ...
    def backward(self) -> None: ...
    def step(self) -> None: ...


class Near(Engine):
    """An engine that inherits its methods."""


class Source:
    """The methods of a loader and of a backend that are timed."""

    def __next__(self) -> int:
        return len(self.get("key"))

    def get(self, key: str) -> bytes:
        return b"bytes"

    def read(self) -> None: ...
    def read_into(self) -> None: ...


def content(path: Path) -> tuple[dict[int, str], list[dict[str, Any]], dict[str, Any]]:
    """Names of the tracks, spans and facts of a file."""
    found = json.loads(gzip.decompress(path.read_bytes()))
    names = {e["tid"]: e["args"]["name"] for e in found["traceEvents"] if e["name"] == "thread_name"}
    return names, [e for e in found["traceEvents"] if e["ph"] == "X"], found["otherData"]


def assert_nested(spans: list[dict[str, Any]]) -> None:
    """On a track two spans are apart, or one lies in the other; they are in order of their begin."""
    assert [span["ts"] for span in spans] == sorted(span["ts"] for span in spans)
    for track in {span["tid"] for span in spans}:
        open_until: list[int] = []
        for span in (span for span in spans if span["tid"] == track):
            while open_until and span["ts"] >= open_until[-1]:
                open_until.pop()
            end = span["ts"] + span["dur"]
            assert not open_until or end <= open_until[-1], span
            open_until.append(end)


def test_the_named_steps_are_traced_and_classes_are_as_before_afterwards(tmp_path: Path) -> None:
    watched = (Engine, Near, Source, Inputs, Fetcher, SnapshotSlot)
    before = [dict(vars(one)) for one in watched]
    engine, source, reports = Near(), Source(), list[SaveReport]()
    trace = StepTrace(tmp_path, 3, range(2, 4), device="cpu")
    trace.watch(Near, Source, Source, lambda: reports)
    for step in range(1, 6):
        trace.begin(step)
        changed = [dict(vars(one)) != was for one, was in zip(watched, before, strict=True)]
        assert changed == [False] + [step in (2, 3)] * 5
        assert next(source) == 5
        engine.forward()
        engine.backward()
        engine.step()
    names, spans, facts = content(tmp_path / "trace-rank00003.json.gz")
    own = [(span["name"], span["cat"]) for span in spans]
    inside = [("next forward", "data"), ("get", "store"), ("forward", "compute")]
    inside += [("backward", "compute"), ("optimizer", "compute")]
    assert own == [("step 2", "compute"), *inside, ("step 3", "compute"), *inside]
    assert [span["args"] for span in spans if span["name"] == "get"] == [{"of": "key"}] * 2
    assert set(names.values()) == {"compute", "data", "store"}
    assert {span["pid"] for span in spans} == {3}
    assert facts == {"format_version": 1, "rank": 3, "spans_left_out": 0}
    assert_nested(spans)
    saved = SaveReport(step=2, state="acknowledged", sealed_seconds=0.5, durable_seconds=2.0)
    reports += [replace(saved, step=n, time=1000.0 + n) for n in (2, 3, 4)]
    trace.close()
    names, spans, _ = content(tmp_path / "trace-rank00003.json.gz")
    saves = [span for span in spans if span["cat"] == "persist"]
    assert sorted(span["name"] for span in saves) == sorted(
        [f"save of step {n}" for n in (2, 3)] + ["write and seal", "commit"] * 2
    )
    assert len({span["tid"] for span in saves}) == 2, "they overlap, and are on two tracks"
    assert_nested(spans)


def test_a_trace_of_steps_that_no_job_took_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = StepTrace(tmp_path, 0, range(7, 9), device="cpu")
    trace.begin(9)
    with caplog.at_level(logging.WARNING):
        trace.close()
    assert "none of the steps 7-8" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["", "3", "0-3", "5-4", "a-b", "1-2-3", "-1-4"])
def test_what_is_no_range_of_steps_is_refused(value: str) -> None:
    with pytest.raises(InvalidField, match=r"no range of steps.*such as 11-15"):
        TrainConfig(trace=value)
    assert TrainConfig(trace="4-4").traced() == range(4, 5)


@pytest.mark.slow
def test_a_run_is_traced_in_all_lanes_and_its_records_give_an_account(tmp_path: Path) -> None:
    """2 ranks train and trace steps 1 to 3; one rank goes on, and the account has all of both jobs."""
    from fmscale.train.account import read_account

    path = write_config(tmp_path, make_corpus(tmp_path))
    common = ("evaluation={every: 2, sets: [{dataset: prose, rows: 4}]}", "checkpoint.every=2")
    run_ranks(train_here, 2, str(path), (*common, "train.trace=1-3", "train.steps=4"), timeout=120)
    run_ranks(train_here, 1, str(path), (*common, "train.steps=6"), timeout=120)
    for rank in range(2):
        _, spans, _ = content(tmp_path / "run" / f"trace-rank{rank:05d}.json.gz")
        assert_nested(spans)
        lanes = {span["cat"] for span in spans}
        assert lanes == {"compute", "data", "transfer", "store", "snapshot", "persist"}
        steps = [span for span in spans if span["name"].startswith("step ")]
        assert [span["name"] for span in steps] == ["step 1", "step 2", "step 3"]
        assert all(b["ts"] - a["ts"] - a["dur"] >= 0 for a, b in pairwise(steps))
        for step in steps:
            inside = [s["name"] for s in spans if step["ts"] < s["ts"] < step["ts"] + step["dur"]]
            assert [name for name in inside if name in ("backward", "optimizer")] == ["backward"] * 3 + ["optimizer"]
        assert any(span["args"].get("of", "").startswith("datasets/") for span in spans if span["cat"] == "store")
    assert [len(event["seconds"]) for event in events_of(tmp_path / "run", "ranks")] == [2] * 4
    account = read_account(tmp_path / "run")
    starts = account.events("started")
    assert [(event["world_size"], event["device"]) for event in starts] == [(2, "cpu"), (1, "cpu")]
    assert [event["outcome"] for event in account.events("reads")] == ["complete", "complete"]
    wall = account.attempts[-1].end - starts[0]["began"]
    assert sum(account.seconds.values()) == pytest.approx(wall, rel=0.02)
    assert all(account.seconds[part] > 0 for part in ("compute", "start", "down", "evaluation", "checkpoint"))
    assert account.seconds["repeated"] == 0
