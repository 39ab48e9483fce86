"""error.json: the first failure, whole, without credentials, and readable by a person."""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fmscale.errors import ConfigError, FormatError, RankError, StoreError
from fmscale.runtime.failure import (
    Whereabouts,
    clear_failure,
    describe_failure,
    failure_report,
    first_failure,
    recorded,
    write_first,
)
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World

WORLD = World(rank=3, world_size=4, local_rank=1, local_size=2, node=1)


def fail(directory: Path, error: Exception, where: Whereabouts) -> None:
    with recorded(directory, WORLD, where):
        raise error


def test_a_user_error_is_recorded_with_cause_value_and_remedy(tmp_path: Path) -> None:
    error = StoreError("The store is full", found="s3://me:hunter22@host/b", remedy="Free some space.")
    with pytest.raises(StoreError):
        fail(tmp_path / "run", error, Whereabouts(phase="save", step=120))
    report = first_failure(tmp_path / "run")
    assert report
    assert {name: report[name] for name in ("rank", "node", "phase", "step", "type", "cause", "found", "remedy")} == {
        "rank": 3,
        "node": 1,
        "phase": "save",
        "step": 120,
        "type": "StoreError",
        "cause": "The store is full",
        "found": "s3://***@host/b",
        "remedy": "Free some space.",
    }
    assert "in fail\n" in report["traceback"]
    assert "hunter22" not in json.dumps(report)
    assert describe_failure(report).splitlines() == [
        f"rank 3 on {os.uname().nodename} failed first, in save at step 120:",
        "StoreError: The store is full",
        "  found:  s3://***@host/b",
        "  remedy: Free some space.",
    ]
    assert os.listdir(tmp_path / "run") == ["error.json"]


def test_an_unforeseen_error_is_shown_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path, ZeroDivisionError("by zero"), Whereabouts())
    report = first_failure(tmp_path)
    assert report
    assert "Traceback (most recent call last)" in describe_failure(report)


def test_of_many_at_once_exactly_one_is_first_and_stays(tmp_path: Path) -> None:
    start = threading.Barrier(16)
    won: list[int] = []

    def race(rank: int) -> None:
        report = failure_report(ValueError(str(rank)), World(rank=rank, world_size=16), Whereabouts())
        start.wait()
        if write_first(tmp_path, report):
            won.append(rank)

    threads = [threading.Thread(target=race, args=(rank,)) for rank in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = first_failure(tmp_path)
    assert report
    assert won == [report["rank"]]
    assert report["cause"] == str(report["rank"])
    assert os.listdir(tmp_path) == ["error.json"]


def test_no_failure_and_a_cleared_one(tmp_path: Path) -> None:
    assert first_failure(tmp_path) is None
    clear_failure(tmp_path)
    write_first(tmp_path, failure_report(ValueError("x"), WORLD, Whereabouts()))
    clear_failure(tmp_path)
    assert first_failure(tmp_path) is None
    (tmp_path / "file").touch()
    assert first_failure(tmp_path / "file") is None


def report_of(error: Exception, **changes: Any) -> dict[str, Any]:
    return {**failure_report(error, WORLD, Whereabouts()), **changes}


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        (RankError("waited"), StoreError("full"), False),
        (RankError("waited"), KeyError("x"), False),
        (RankError("waited"), RankError("waited too"), True),
        (RankError("waited"), RuntimeError("Connection closed by peer"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection reset by peer"), StoreError("full"), False),
        (StoreError("full"), RankError("waited"), True),
        (StoreError("full"), StoreError("full here too"), True),
    ],
)
def test_a_rank_that_missed_another_gives_way_to_a_cause_and_to_nothing_else(
    tmp_path: Path, first: Exception, second: Exception, stays: bool
) -> None:
    assert write_first(tmp_path, report_of(first))
    assert write_first(tmp_path, report_of(second)) is not stays
    report = first_failure(tmp_path)
    assert report
    assert report["traceback"] == report_of(first if stays else second)["traceback"]
    assert os.listdir(tmp_path) == ["error.json"]


@pytest.mark.parametrize("changes", [{"attempt": 7}, {"time": 1_700_000_000.0}])
def test_an_earlier_attempts_report_gives_way_to_any(tmp_path: Path, changes: dict[str, float]) -> None:
    write_first(tmp_path, report_of(StoreError("full"), **changes))
    assert write_first(tmp_path, report_of(RankError("waited")))


def test_a_report_that_cannot_be_written_hides_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    caplog.set_level(logging.WARNING)
    where = Whereabouts()
    with pytest.raises(StoreError, match="full") as caught, recorded(tmp_path / "file", WORLD, where):
        fail(tmp_path / "file", StoreError("full"), where)
    assert caught.value.__context__ is None
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"{tmp_path}/file/error.json is not written"
    ]


def test_a_folder_that_is_a_file_cannot_be_cleared(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be deleted") as caught:
        clear_failure(tmp_path / "file")
    assert caught.value.found == f"{tmp_path}/file: Not a directory"
    assert "train.folder" in caught.value.remedy


def test_others_are_told_when_the_cause_is_recorded(tmp_path: Path) -> None:
    """Reports of the other ranks come later, even if they write at once."""
    waits = HostWaits(HashStore(), WORLD)
    tell, seen = waits.fail, []

    def told(error: BaseException, phase: str) -> None:
        seen.append(first_failure(tmp_path))
        tell(error, phase)

    waits.fail = told  # type: ignore[method-assign]
    with pytest.raises(StoreError), recorded(tmp_path, WORLD, Whereabouts(), waits):
        raise StoreError("full")
    assert seen[0] is not None
    with pytest.raises(RankError, match="failed in start: full"):
        waits.wait("save", ranks=[0])


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 2}', '{"a":' * 100_000], ids=["", "[]", "2", "deep"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "error.json").write_text(text)
    with pytest.raises(FormatError):
        first_failure(tmp_path)
