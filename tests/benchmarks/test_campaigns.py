"""`fmscale bench campaigns`: a drawn part of its acts on ingests and caches, and judges that see faults."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.campaign.caches import ACTS, Pair, cache_acts
from benchmarks.campaign.growing import Growing, differences
from benchmarks.campaign.ingests import ingest_kills
from benchmarks.campaign.outcome import Outcome, Row, campaign, told
from benchmarks.campaigns import CAMPAIGNS, run
from fmscale.data.ingest import ingest
from fmscale.errors import ConfigError
from tests.helpers.bad_acts import fail, hang


def faults(outcomes: Iterator[Outcome], target: int) -> list[Outcome]:
    """Outcomes with a fault, of at least `target` acts."""
    done = list(outcomes)
    assert sum(outcome.count for outcome in done) >= target
    return [outcome for outcome in done if outcome.fault]


def test_killed_ingests_of_a_folder_that_grows(tmp_path: Path) -> None:
    assert faults(ingest_kills(tmp_path, 3, seed=5), 3) == []


def test_acts_on_a_cache_under_two_readers(tmp_path: Path) -> None:
    assert faults(cache_acts(tmp_path, len(ACTS), seed=5, patience=0.5), len(ACTS)) == []


def test_a_dataset_that_differs_is_seen(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "in", random.Random(1))
    stores = {name: tmp_path / name for name in ("store", "same", "split")}
    for name, store in stores.items():
        heldout = 0.6 if name == "split" else 0.3
        ingest([str(growing.path)], store=str(store), dataset="d", tokenizer="bytes", heldout=heldout, workers=1)
    assert differences(stores["store"], stores["same"], growing) == ("", "")
    assert differences(stores["store"], stores["split"], growing)[0] == "mixed"
    growing.grow()
    assert differences(stores["store"], stores["same"], growing)[0] == "lost"
    ingest([str(growing.path)], store=str(stores["same"]), dataset="d", workers=1)
    assert differences(stores["store"], stores["same"], None)[0] == "lost"


def test_a_reader_that_ends_is_seen(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 1, 0.5)
    try:
        pair.readers[1].process.kill()
        assert pair.follow()[0] == "crashed"
        pair.readers[0].longest = 0.8
        assert pair.follow()[0] == "hung"
    finally:
        pair.close()


def test_a_campaign_that_hangs_or_fails_is_counted(tmp_path: Path) -> None:
    hung = campaign("hang", hang, tmp_path / "hang", target=2, seed=1, patience=1.0)
    assert (hung.hung, hung.crashed, hung.ok) == (1, 0, False)
    failed = campaign("fail", fail, tmp_path / "fail", target=2, seed=1, patience=60.0)
    assert (failed.count, failed.crashed, failed.hung, failed.ok) == (2, 1, 0, False)
    assert "FAILED" in told(failed)
    assert "ValueError: fail" in told(failed)


def test_a_row_needs_its_number_of_acts() -> None:
    row = Row(campaign="x", target=2)
    row.add(Outcome())
    assert (row.count, row.ok) == (1, False)
    row.add(Outcome())
    assert (row.count, row.ok) == (2, True)
    row.add(Outcome(fault="silent", reason="a flip"))
    assert (row.silent, row.ok) == (1, False)


def test_the_numbers_are_those_promised() -> None:
    least = {"logs": 100, "checkpoints": 300, "ingests": 40, "trainings": 20, "caches": 50}
    assert all(CAMPAIGNS[name][1] >= number for name, number in least.items())
    with pytest.raises(ConfigError, match="no such campaign"):
        next(run(quick=True, seed=1, only=("nothing",)))
