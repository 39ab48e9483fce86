"""Runs that must not start or must end by themselves, and held-out losses."""

from pathlib import Path
from typing import Any

import pytest

from fmscale.config import derive_batch, load_config
from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.errors import ConfigError, FmscaleError
from fmscale.runtime.failure import first_failure
from fmscale.runtime.waits import HostWaits
from fmscale.store.open import open_store
from fmscale.train.data import check_length, tokenizer_of, vocabulary
from fmscale.train.length import run_length
from fmscale.train.run import run_training
from tests.helpers.ranks import run_ranks
from tests.train.runs import T, events_of, make_corpus, steps_of, train_here, write_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def path(store: str, tmp_path: Path) -> Path:
    return write_config(tmp_path, store)


def test_a_vocabulary_below_the_tokenizers_is_refused_with_the_place(path: Path) -> None:
    config = load_config(path, ("model.vocab_size=100",))
    with pytest.raises(ConfigError, match=r"override.*smaller than the vocabulary") as caught:
        vocabulary(config, ByteTokenizer())
    assert "272" in caught.value.remedy
    assert vocabulary(load_config(path), ByteTokenizer()) == 272
    assert vocabulary(load_config(path, ("model.vocab_size=512",)), ByteTokenizer()) == 512


def test_rows_beyond_the_models_longest_sequence_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than the model's max_seq_len"):
        check_length(load_config(path, ("data.sequence_length=49",)))
    check_length(load_config(path))


def test_a_run_says_how_long_it_is(path: Path) -> None:
    six = derive_batch(load_config(path).batch, 1)
    assert run_length(load_config(path, ("train.steps=null", "train.tokens=1000")), six).steps == 4
    with pytest.raises(ConfigError, match="does not say how long"):
        run_length(load_config(path, ("train.steps=null",)), six)
    with pytest.raises(ConfigError, match="both say how long"):
        load_config(path, ("train.tokens=5",))


def test_metrics_need_a_folder(path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        run_training(load_config(path, (f"train.folder={path}",)), show=print, event=print)


def test_a_dataset_without_commits_has_no_tokenizer(path: Path, tmp_path: Path) -> None:
    from fmscale.store.datasets.dataset import create_or_open

    empty = open_store(str(tmp_path / "empty"))
    create_or_open(empty, "prose")
    with pytest.raises(FmscaleError, match="prose"):
        tokenizer_of(load_config(path), empty)


def go(size: int, path: Path, *overrides: str) -> dict[str, Any]:
    outcome: dict[str, Any] = run_ranks(train_here, size, str(path), overrides, timeout=120)[0]
    return outcome


def test_held_out_losses_are_those_of_the_same_rows_at_any_size(path: Path, tmp_path: Path) -> None:
    """11 rows: three ranks with microbatches of 1 do not divide them, and fillers have no weight."""
    sets = "evaluation={every: 2, sets: [{dataset: prose, rows: 11}, {dataset: sums, rows: 3, name: arithmetic}]}"
    common = (sets, "train.steps=3", "model.dropout=0.2", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
    found = []
    for size in (1, 3):
        ranks = run_ranks(
            train_here, size, str(path), (*common, "train.log_every=5", f"train.run=size{size}"), timeout=120
        )
        found.append(events_of(tmp_path / f"size{size}", "evaluation"))
    assert_told(ranks[0], ranks[2])
    assert [event["step"] for event in found[0]] == [2, 3]
    for events in found:
        for event in events:
            assert event["heldout/prose"] == pytest.approx(found[0][0]["heldout/prose"], rel=1e-5)
            assert event["heldout/arithmetic"] == pytest.approx(found[0][0]["heldout/arithmetic"], rel=1e-5)
    assert found[0][0]["heldout/prose"] != found[0][0]["heldout/arithmetic"]


def test_a_run_that_stays_non_finite_ends_and_says_so(path: Path, tmp_path: Path) -> None:
    overrides = ("train.run=wild", "optimizer.lr=1e38", "train.nonfinite_limit=2", "checkpoint.every=1")
    with pytest.raises(Exception, match="not finite in 2 steps in a row"):
        go(1, path, *overrides)
    steps = steps_of(tmp_path / "wild")
    assert [steps[step]["applied"] for step in sorted(steps)][-2:] == [False, False]
    report = first_failure(tmp_path / "wild")
    assert report is not None
    assert report["phase"] == "train"
    assert report["step"] == max(steps)
    assert f"steps {max(steps) - 1} to {max(steps)}" in report["found"]
    assert "optimizer.lr" in report["remedy"]
    [failed] = events_of(tmp_path / "wild", "failed")
    assert failed["type"] == "Diverged"
    assert "not finite in 2 steps" in failed["cause"]


def test_time_that_is_up_stops_with_a_checkpoint(path: Path) -> None:
    overrides = ("train.run=short", "train.steps=100000", "train.seconds=4", "checkpoint.every=null")
    outcome = go(2, path, *overrides)
    assert outcome["stop"] == "DEADLINE"
    assert outcome["saved"]
    assert not outcome["complete"]
    assert outcome["phases"][-3:] == ["saving before the stop", "save", "waiting for the last save"]
    again = go(1, path, *overrides, "train.seconds=null", f"train.steps={outcome['last_step'] + 1}")
    assert again["first_step"] == outcome["last_step"]
    assert again["complete"]


def assert_told(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Only rank 0 reports the begin, the run, and progress from the first step on."""
    start = ["meeting", "checking the config", "opening the data", "building the model", "restore"]
    assert first["phases"] == [*start, *["train", "evaluate"] * 2, "train", "save", "waiting for the last save"]
    opened, *later = first["events"]
    assert (opened["event"], opened["device"], opened["vocab_size"]) == ("opened", "cpu", 272)
    assert (opened["steps"], opened["tokens_per_step"]) == (3, 6 * T)
    assert [source["label"] for source in opened["sources"]] == ["prose", "sums"]
    assert all(source["tokens"] > 1000 and 0 < source["epochs"] < 1 for source in opened["sources"])
    assert [event["event"] for event in later] == ["evaluation", "evaluation", "checkpoint"]
    assert [record["step"] for record in first["shown"]] == [1, 3]
    assert (other["phases"], other["events"], other["shown"]) == ([], [], [])


def noting_train(rank: int, size: int, path: str, notes: str) -> None:
    """Train as this rank; a line when rank 1 parts, and one when rank 0 has ended."""
    part = HostWaits.part

    def noted(self: HostWaits) -> None:
        if self.rank:
            note("rank 1 parts\n")
        part(self)

    def note(line: str) -> None:
        with open(notes, "a") as file:
            file.write(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostWaits, "part", noted)
        train_here(rank, size, path, ("train.steps=1",))
    if rank == 0:
        note("rank 0 ended\n")


def test_rank_zero_serves_the_others_to_the_end_of_a_run(path: Path, tmp_path: Path) -> None:
    run_ranks(noting_train, 2, str(path), str(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "rank 1 parts\nrank 0 ended\n"
