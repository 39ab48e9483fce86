"""The last save of a run: an unsaved step is not reported as saved, and no earlier save blocks the last."""

import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import StoreError
from fmscale.runtime.failure import first_failure
from tests.helpers.disks import mounted
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, steps_of, train_here, write_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def train_until_step_3_is_saved(
    rank: int, size: int, path: str, overrides: tuple[str, ...], skipping: int | None
) -> dict[str, Any]:
    """A run with a stop during step 3, after which it saves. Rank `skipping` has a free snapshot only after a wait."""
    from fmscale.checkpoint.saver import Saver
    from fmscale.train.step import train_step

    free_slot, steps = Saver._free_slot, count()

    def stepped(*args: Any, **options: Any) -> Any:
        if options["rate"] and next(steps) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return train_step(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.loop.train_step", stepped)
        if rank == skipping:
            patch.setattr(Saver, "_free_slot", lambda self, wait: free_slot(self, wait) if wait else None)
        return train_here(rank, size, path, overrides)


@pytest.mark.parametrize("skipping", [0, 1, None])
def test_a_stop_saves_a_step_unless_its_own_save_succeeds(store: str, tmp_path: Path, skipping: int | None) -> None:
    path = write_config(tmp_path, store)
    run = f"skipping-{skipping}"
    overrides = (f"train.run={run}", "train.steps=100000", "checkpoint.every=3")
    outcome = run_ranks(train_until_step_3_is_saved, 2, str(path), overrides, skipping, timeout=120)[0]
    assert outcome["stop"] == "SIGUSR1"
    assert (outcome["last_step"], outcome["saved_step"], outcome["saved"]) == (3, 3, True)
    found = [(event["step"], event["state"]) for event in events_of(tmp_path / run, "checkpoint")]
    lost = {0: [(3, "skipped")], 1: [(3, "failed")], None: []}
    assert found == [*lost[skipping], (3, "acknowledged")]


def test_a_run_whose_last_save_found_the_disk_full_fails_and_says_what_there_is(store: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "24m") as disk:
        shutil.copytree(store, disk / "store", ignore=shutil.ignore_patterns("runs"))
        path = write_config(tmp_path, str(disk / "store"))
        with pytest.raises(StoreError, match=r"after step 2 .* not saved; there is no checkpoint.*full") as caught:
            run_full(path, disk, "train.steps=2")
        assert "fmscale doctor" in caught.value.remedy
        outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
        assert (outcome["complete"], outcome["saved"], outcome["saved_step"]) == (False, False, 0)
        report = first_failure(tmp_path / "run")
        assert report is not None
        assert "not saved" in report["cause"]

        (disk / "ballast").unlink()
        [outcome] = run_ranks(train_here, 1, str(path), ("train.steps=2",), timeout=120)
        assert (outcome["first_step"], outcome["saved_step"]) == (0, 2)
        with pytest.raises(StoreError, match="newest checkpoint is that of step 2"):
            run_full(path, disk, "train.steps=4")
    assert sorted(steps_of(tmp_path / "run")) == [1, 2, 3, 4], "training went on"


def run_full(path: Path, disk: Path, steps: str) -> None:
    """Train with 150 kB left on the disk: enough for the log, and too little for a checkpoint."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - 150_000))
    run_ranks(train_here, 1, str(path), (steps, "checkpoint.retries=0", "checkpoint.every=null"), timeout=120)
