"""The disk of train.folder is full and the store has room: training goes on, and lost lines are reported."""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from tests.helpers.disks import mounted
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, steps_of, write_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as path:
        yield path


class Heard(logging.Handler):
    """Keeps the messages of a run's log."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def train_on(rank: int, size: int, path: str, overrides: tuple[str, ...], ballast: str) -> Any:
    """Train with a closed terminal; the first shown progress removes the ballast."""
    from fmscale.checkpoint.saver import Saver
    from fmscale.config import load_config
    from fmscale.train.run import run_training
    from tests.helpers.deepspeed_numbers import restart_numbers

    heard, end = Heard(), Saver._end
    saved: dict[int, float] = {}

    def ended(self: Saver, number: int, **fields: Any) -> None:
        step = self._saves[number].step
        end(self, number, **fields)
        saved[step] = time.time()

    def gone(record: Mapping[str, Any]) -> None:
        if ballast:
            Path(ballast).unlink(missing_ok=True)
        raise BrokenPipeError(32, "Broken pipe")

    restart_numbers()
    logging.getLogger("fmscale").addHandler(heard)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Saver, "_end", ended)
            outcome = run_training(load_config(path, overrides), show=gone, event=lambda record: None)
    finally:
        logging.getLogger("fmscale").removeHandler(heard)
    return outcome.to_json(), heard.messages, saved


def audit(store: str, folder: Path) -> dict[str, Any]:
    records = [str(path) for path in sorted((folder / "delivery").glob("*.arrow"))]
    found = CliRunner().invoke(build_app(), ["dataset", "audit", "--store", store, "--run", "run", *records, "--json"])
    return dict(json.loads(found.stdout))


def test_a_full_disk_costs_records_and_no_step_and_no_save(store: str, tmp_path: Path, disk: Path) -> None:
    path, folder = write_config(tmp_path, store), disk / "run"
    folder.mkdir()
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
    os.link(ballast, folder / "outcome.json")  # an earlier job's file, whose end leaves no room
    place = (f"train.folder={disk}", "train.steps=4", "train.log_every=2")
    [(outcome, messages, saved)] = run_ranks(train_on, 1, str(path), place, "", timeout=120)
    assert (outcome["complete"], outcome["saved_step"]) == (True, 4)
    assert sorted(saved) == [3, 4]
    for name, count in (("metrics.jsonl", 9), ("delivery/000001-rank00000.arrow", 2)):
        told = [message for message in messages if name in message]
        assert [message.split(name)[1] for message in told] == [
            " is not written: No space left on device. The run goes on; what can be is written later.",
            f" lacks {count} records",
        ]
    assert sum("outcome.json is not written" in message for message in messages) == 1
    assert not (folder / "outcome.json").exists()
    assert sum("progress is not shown: Broken pipe" in message for message in messages) == 1
    assert len(messages) == 6, messages

    place = (place[0], "train.steps=8", "train.log_every=4")
    [(outcome, messages, saved)] = run_ranks(train_on, 1, str(path), place, str(ballast), timeout=120)
    assert (outcome["first_step"], outcome["saved_step"]) == (4, 8), "the last save restores"
    assert json.loads((folder / "outcome.json").read_text()) == outcome
    steps = steps_of(folder)
    assert sorted(steps) == [5, 6, 7, 8], "kept until the disk had room"
    for before, after in pairwise(steps.values()):
        assert after["time"] - before["time"] >= 0.9 * after["seconds"], "when the step ended"
    found = {event["step"]: event["time"] for event in events_of(folder, "checkpoint")}
    assert sorted(found) == sorted(saved) == [6, 8]
    assert all(found[step] <= saved[step] for step in found), "when the save was acknowledged"
    report = audit(store, folder)
    assert report["missing_samples"] == 24
    assert report["problems"] == ["24 samples that no record shows as received"]
