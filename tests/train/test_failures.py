"""Runs that fail, or are stopped, before or in their first step: error.json has the cause, and no rank waits."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmscale.config import load_config
from fmscale.errors import AccessDenied, ConfigError, DataError, ObjectNotFound
from fmscale.runtime.failure import Whereabouts, describe_failure, failure_report, first_failure, write_first
from fmscale.runtime.world import World
from fmscale.train.run import run_training
from tests.helpers import ranks
from tests.helpers.ranks import run_ranks
from tests.train.runs import make_corpus, train_here, write_config

PATIENCE = 30.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def path(store: str, tmp_path: Path) -> Path:
    """A config whose run failed an hour before."""
    report = failure_report(ValueError("earlier"), World(), Whereabouts())
    write_first(tmp_path / "run", {**report, "time": report["time"] - 3600})
    return write_config(tmp_path, store)


def await_true(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return done


def outcome_of(rank: int, size: int, path: str) -> str:
    """The outcome or the error as text: after a raised error the helper would kill the other ranks."""
    try:
        return str(train_here(rank, size, path, ()))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refused_the_lease(rank: int, size: int, path: str) -> str:
    """Rank 0 may not write; it closes its parts only when error.json exists."""
    from fmscale.runtime.stop import StopFlag
    from fmscale.train import session

    folder, remove = Path(path).parent / "run", StopFlag.remove

    def remove_late(self: StopFlag) -> None:
        assert await_true(lambda: first_failure(folder) is not None, PATIENCE)
        report = first_failure(folder)
        assert report is not None
        assert report["rank"] == 0
        remove(self)

    def acquire(*args: Any) -> None:
        raise AccessDenied("the store is read-only", remedy="Ask for rights.")

    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(StopFlag, "remove", remove_late)
            patch.setattr(session, "acquire", acquire)
        return outcome_of(rank, size, path)


def test_error_json_has_the_cause_and_not_what_woken_ranks_say(path: Path, tmp_path: Path) -> None:
    first, second = run_ranks(refused_the_lease, 2, str(path), timeout=120)
    assert first.startswith("AccessDenied: the store is read-only")
    assert second.startswith("RankError: rank 1 waited")
    report = first_failure(tmp_path / "run")
    assert report is not None
    assert (report["rank"], report["type"]) == (0, "AccessDenied")


def one_config_is_wrong(rank: int, size: int, path: str) -> str:
    """Rank 1 refuses its config; rank 0 deletes the earlier attempt's report as late as possible."""
    from fmscale.runtime.failure import clear_failure
    from fmscale.train import run, session

    def refuse(config: Any) -> None:
        raise ConfigError("another config than elsewhere", remedy="Copy it.")

    def clear_late(folder: Path) -> None:
        # A second in which rank 1 would write its report if it did not wait for this.
        await_true(lambda: "another config" in (folder / "error.json").read_text(), 1.0)
        clear_failure(folder)

    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(run, "check_length", refuse)
        else:
            patch.setattr(session, "clear_failure", clear_late)
            # Rank 0 only waits for the other rank.
            patch.setattr(run, "_run", lambda session, *rest: session.waits.wait("never", ranks=[1]))
        return outcome_of(rank, size, path)


def test_one_rank_that_fails_early_is_heard_by_all_and_its_report_stays(path: Path, tmp_path: Path) -> None:
    first, second = run_ranks(one_config_is_wrong, 2, str(path), timeout=120)
    assert "failed in checking the config: another config than elsewhere" in first
    assert second.startswith("ConfigError: another config than elsewhere")
    report = first_failure(tmp_path / "run")
    assert report is not None
    assert (report["rank"], report["type"]) == (1, "ConfigError")


def the_other_never_comes(rank: int, size: int, path: str) -> str:
    """Rank 0 receives a stop while it waits for the start of ranks."""
    from fmscale.runtime import waits

    def noticed(self: waits.HostWaits, name: str, **options: Any) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return barrier(self, name, **options)

    barrier = waits.HostWaits.barrier
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waits, "STOP_SECONDS", 0.1)
        patch.setattr(waits.HostWaits, "barrier", noticed)
        return "" if rank else outcome_of(rank, size, path)


def test_a_rank_that_waits_for_others_to_start_heeds_signals(path: Path, tmp_path: Path) -> None:
    first, _ = run_ranks(the_other_never_comes, 2, str(path), timeout=120)
    assert re.match(r"RankError: rank 0 waited \d+ s for rank 1 in meeting, .* told to stop \(SIGTERM\)", first)
    report = first_failure(tmp_path / "run")
    assert report is not None
    assert report["type"] == "RankError"


def lacks_the_store(rank: int, size: int, path: str) -> str:
    """Rank 1 cannot open the data; rank 0 would wait for it in the engine's first collective."""
    from fmscale.train import setup

    def absent(*args: Any, **options: Any) -> None:
        raise ObjectNotFound("There is no such folder", remedy="Mount it.")

    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(setup, "open_training", absent)
        return outcome_of(rank, size, path)


def test_a_rank_that_cannot_open_the_data_ends_the_others_before_they_build(path: Path) -> None:
    first, second = run_ranks(lacks_the_store, 2, str(path), timeout=120)
    assert re.match(r"RankError: rank 0 waited \d+ s in opening the data when rank 1 .* no such folder", first)
    assert second.startswith("ObjectNotFound: There is no such folder")


def opens_for_ever(rank: int, size: int, path: str) -> str:
    """Rank 1 opens the data until rank 0 has ended, which is told to stop while it waits for rank 1."""
    from fmscale.runtime import waits
    from fmscale.train import setup

    folder, barrier = Path(path).parent / "run", waits.HostWaits.barrier

    def noticed(self: waits.HostWaits, name: str, **options: Any) -> list[str]:
        if name == "opening the data":
            os.kill(os.getpid(), signal.SIGTERM)
        return barrier(self, name, **options)

    def for_ever(*args: Any, **options: Any) -> None:
        assert await_true(lambda: first_failure(folder) is not None, PATIENCE)
        raise ObjectNotFound("There is no such folder", remedy="Mount it.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waits, "STOP_SECONDS", 0.1)
        patch.setattr(setup, "open_training", for_ever) if rank else patch.setattr(waits.HostWaits, "barrier", noticed)
        return outcome_of(rank, size, path)


def test_a_rank_that_waits_to_build_obeys_a_stop(path: Path) -> None:
    first, _ = run_ranks(opens_for_ever, 2, str(path), timeout=120)
    assert re.match(r"RankError: rank 0 waited \d+ s for rank 1 in opening the data, .* \(SIGTERM\)", first)


def killed_in_a_step(rank: int, size: int, path: str) -> None:
    from fmscale.train import loop

    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(loop, "train_step", lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))
        train_here(rank, size, path, ())


def test_a_rank_that_was_killed_is_named_with_its_signal(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "SETTLE_SECONDS", PATIENCE)
    with pytest.raises(ranks.RankDied):
        run_ranks(killed_in_a_step, 2, str(path), timeout=120)
    report = first_failure(tmp_path / "run")
    assert report is not None
    assert (report["rank"], report["type"], report["phase"]) == (0, "RankError", "train")
    # The parent of these ranks asks for their status at once; tests/launch has launchers, which look now and then.
    told = r"rank 0 lost another rank: rank 1 on \S+ \(process \d+\) (was ended by signal 9|ended, its launcher knows)"
    assert re.match(told, report["cause"])
    assert describe_failure(report).startswith(
        f"rank 0 on {os.uname().nodename} lost another rank, in train at step 1:"
    )


def test_an_early_error_is_said_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed prints warnings when it is imported; a run without data needs none."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(DataError, match="no dataset of this name"):
        train_alone(path, "data.sources=[{dataset: nothing}]")


def test_a_folder_that_cannot_be_written_is_one_error(path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder") as caught:
        train_alone(path, f"train.folder={path}")
    assert caught.value.__context__ is None
    assert "train.folder" in caught.value.remedy


def train_alone(path: Path, *overrides: str) -> None:
    run_training(load_config(path, overrides), show=lambda record: None, event=lambda record: None)


def test_the_second_ctrl_c_of_a_run_alone_interrupts_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    heard = []

    def interrupted(*args: Any) -> None:
        for number in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            heard.append(number)

    monkeypatch.setattr("fmscale.train.setup.tokenizer_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_alone(path)
    assert heard == [0]
    assert "SIGINT: saves and ends after this step" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def out_of_memory(rank: int, size: int, path: str) -> Any:
    """A run whose forward of the first step asks for more memory than there is."""
    import torch

    from fmscale.train.engine.deepspeed import DeepSpeedEngine

    def full(self: Any, *args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepSpeedEngine, "forward", full)
        return outcome_of(rank, size, path)


def test_a_lack_of_device_memory_in_a_step_is_told_with_the_plan_and_remedies(path: Path) -> None:
    [told] = run_ranks(out_of_memory, 1, str(path), timeout=120)
    assert told.startswith("OutOfDeviceMemory: cpu has no memory left")
    report = first_failure(path.parent / "run")
    assert report is not None
    assert (report["phase"], report["step"]) == ("train", 1)
    assert "2.00 GiB; the model's state is 0.0 GB of it by the plan" in report["found"]
    assert report["remedy"] == "In this order: train.recompute: full; train.offload_optimizer: true."


def interrupted_after_a_step(rank: int, size: int, path: str) -> dict[str, Any]:
    from fmscale.train.step import train_step

    def interrupted(*args: Any, **options: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*args, **options)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fmscale.train.loop.train_step", interrupted)
            return train_here(rank, size, path, ("checkpoint.every=null",))
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_ends(path: Path) -> None:
    [outcome] = run_ranks(interrupted_after_a_step, 1, str(path), timeout=120)
    assert (outcome["stop"], outcome["saved"], outcome["complete"]) == ("SIGINT", True, False)
    assert not (path.parent / "run" / "error.json").exists()
