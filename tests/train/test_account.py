"""The account of a run: the use of its time adds up, and records are read as far as they are whole."""

import json
import math
from pathlib import Path

import pytest

from fmscale.errors import ConfigError
from fmscale.train.account import PARTS, number, read_account, told_events
from tests.helpers.told_runs import killed_and_resumed, started, step, write_records


def test_every_second_of_a_killed_run_has_its_part_and_all_add_up(tmp_path: Path) -> None:
    account = read_account(killed_and_resumed(tmp_path / "run"))
    assert list(account.seconds) == list(PARTS)
    expected = {
        "compute": 6 * (2.0 - 0.2 - 0.1),
        "data stall": 6 * 0.2,
        "checkpoint": 6 * 0.1 + 1.0,
        "evaluation": 1.0,
        "repeated": 4.0,
        "start": 4.0 + 4.0,
        "down": 6.0,
    }
    assert account.seconds == pytest.approx(expected)
    assert sum(expected.values()) == pytest.approx(1032.0 - 1000.0)
    assert account.goodput == pytest.approx(10.2 / 32.0)
    assert [record["step"] for record in account.steps] == [1, 2, 3, 4, 5, 6]
    assert [attempt.repeated for attempt in account.attempts] == [0, 2]


def test_an_evaluation_inside_a_step_is_no_compute(tmp_path: Path) -> None:
    looked = {"time": 12.0, "event": "evaluation", "step": 1, "heldout/docs": 3.0, "seconds": 0.5}
    folder = write_records(tmp_path, started(9.0), step(1, 11.0), looked, step(2, 13.0))
    seconds = read_account(folder).seconds
    assert seconds["evaluation"] == 0.5
    assert seconds["compute"] == pytest.approx(2 * 1.7 - 0.5)


def test_the_events_of_a_run_are_told_in_words(tmp_path: Path) -> None:
    told = [
        (one.event, one.step, one.detail) for one in told_events(read_account(killed_and_resumed(tmp_path / "run")))
    ]
    assert told == [
        ("started", None, "2 ranks, cpu"),
        ("saved", 2, "durable after 0.40 s"),
        ("lost", 4, "its end is not on record: it was killed, or its machine"),
        ("started", None, "1 rank, cpu"),
        ("resumed", 2, "from step 2 of run, 2 → 1 ranks; steps taken again: 2"),
        ("complete", 6, ""),
        ("saved", 6, "durable after 1.10 s"),
    ]


def test_failures_are_told_with_their_cause(tmp_path: Path) -> None:
    bad = {"time": 12.0, "event": "checkpoint", "step": 1, "state": "failed", "reason": "the disk is full"}
    failed = {"time": 14.0, "event": "failed", "type": "Diverged", "cause": "gradients were not finite"}
    folder = write_records(tmp_path, started(9.0), step(1, 11.0), bad, step(2, 13.0, applied=False, loss="nan"), failed)
    told = [one for one in told_events(read_account(folder)) if one.trouble]
    assert [(one.event, one.detail) for one in told] == [
        ("save failed", "the disk is full"),
        ("failed", "Diverged: gradients were not finite"),
        ("not applied", "steps that changed nothing, as their gradients were not finite: 1"),
    ]
    write_records(folder, started(23.0))
    (folder / "error.json").write_text(json.dumps({"rank": 1, "host": "a", "phase": "train", "cause": "no memory"}))
    last = list(told_events(read_account(folder)))[-1]
    assert (last.event, last.detail) == ("failed", "rank 1 on a in train: no memory")


def test_half_a_line_is_left_out_and_a_damaged_line_ends_the_records_with_a_note(tmp_path: Path) -> None:
    path = write_records(tmp_path, started(9.0), step(1, 11.0)) / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 3])
    assert [record["step"] for record in read_account(tmp_path).steps] == [1]
    path.write_bytes(whole + b'{"step": \n' + whole)
    account = read_account(tmp_path)
    assert len(account.steps) == len(account.attempts) == 1
    assert "metrics.jsonl:3" in account.notes[0]
    (tmp_path / "error.json").write_text('{"cause": ')
    assert read_account(tmp_path).failure is None


def test_records_of_before_have_attempts_by_their_step_numbers(tmp_path: Path) -> None:
    folder = write_records(tmp_path, step(1, 12.0), step(2, 14.0), step(2, 24.0), step(3, 26.0))
    account = read_account(folder)
    assert [len(attempt.steps) for attempt in account.attempts] == [2, 2]
    assert account.seconds["repeated"] == 2.0
    assert account.seconds["down"] == 8.0
    assert account.seconds["start"] == 0.0
    assert "earlier version" in account.notes[0]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no metrics of a run here: found '.*nothing.*'\. Name the folder"):
        read_account(tmp_path / "nothing")
    (tmp_path / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(ConfigError, match="no record yet"):
        read_account(tmp_path)


def test_a_number_that_json_lacks_is_read_and_a_missing_one_is_nan() -> None:
    assert number({"loss": "inf"}, "loss") == math.inf
    assert math.isnan(number({"loss": None}, "loss"))
    assert math.isnan(number({}, "loss"))
