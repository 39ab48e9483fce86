"""Files of every kind that an earlier version wrote: their readings have not changed, and work continues on them."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import SourceConfig, load_config
from fmscale.data.ingest import ingest
from fmscale.data.open import open_loader
from fmscale.data.provenance.delivery import order_hash, read_records, without_repeats
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from fmscale.store.tiers.cache import NodeCache
from fmscale.train.compare import read_history
from tests.fixtures.make_run import CONFIG, FOLDER, HALF, date
from tests.fixtures.run_readings import readings
from tests.helpers.ranks import run_ranks
from tests.train.runs import train_here

EXPECTED: dict[str, Any] = json.loads((FOLDER / "run_version_1.json").read_text(encoding="utf-8"))

READINGS: dict[str, Any] = EXPECTED["readings"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The archive, unpacked."""
    with zipfile.ZipFile(FOLDER / "run_version_1.zip") as archive:
        archive.extractall(tmp_path)
    date(tmp_path)
    return tmp_path


def test_all_reads_as_it_did(root: Path) -> None:
    found = readings(root, EXPECTED["mask"])
    for name, value in found.items():
        assert value == READINGS[name], name


def test_a_run_goes_on_to_what_the_unbroken_one_came_to(root: Path) -> None:
    config = root / "stopped.yaml"
    config.write_text(CONFIG.format(root=root, run="stopped", mask=EXPECTED["mask"]))
    assert load_config(config).train.run == "stopped"
    [outcome] = run_ranks(train_here, 1, str(config), (), timeout=120)
    assert (outcome["first_step"], outcome["last_step"], outcome["complete"]) == (4, 8, True)
    history, wanted = read_history(root / "runs/stopped"), READINGS["unbroken"]
    assert {str(step): one["loss"] for step, one in history.steps.items()} == pytest.approx(wanted["losses"], rel=1e-6)
    rows = without_repeats(read_records(sorted((root / "runs/stopped/delivery").glob("*.arrow"))))
    assert order_hash(rows) == wanted["order"]
    for words in (
        ["compare", str(root / "runs/stopped"), str(root / "runs/unbroken"), "--tolerance", "1e-6"],
        ["dataset", "audit", "--store", str(root / "store"), "--run", "stopped",
         *map(str, sorted((root / "runs/stopped/delivery").glob("*.arrow")))],
    ):  # fmt: skip
        result = CliRunner().invoke(build_app(), words)
        assert result.exit_code == 0, result.output


def test_a_killed_ingest_job_ends_without_its_finished_units(root: Path) -> None:
    store, half = str(root / "store"), READINGS["half"]
    result = ingest([str(root / "corpora/half")], store=store, **HALF)
    assert (result.job, result.units, result.resumed) == (half["job"], half["units"], len(half["finished"]))
    commit = open_dataset(open_store(store), "half").commits()[0]
    assert commit.body["manifests"] == EXPECTED["half_manifests"]


def test_a_commit_is_appended(root: Path) -> None:
    (root / "more").mkdir()
    (root / "more/1.txt").write_text("the lazy dog")
    result = ingest([str(root / "more")], store=str(root / "store"), dataset="prose", workers=1)
    commits = open_dataset(open_store(str(root / "store")), "prose").commits()
    assert [one.number for one in commits] == [*READINGS["dataset"]["live"], result.commit]
    assert result.tokenizer == READINGS["dataset"]["tokenizer"][0]


def test_an_old_cache_serves_its_chunks(root: Path) -> None:
    spec = SourceConfig(dataset="prose", commits=(0, 1), masks=(EXPECTED["mask"],))
    with open_loader(
        str(root / "store"), sequence_length=33, batch=6, sources=[spec], cache_dir=root / "cache"
    ) as loader:
        next(loader)
        cache = loader._readers.fetcher.cache
        assert isinstance(cache, NodeCache)
        assert cache.requests.count["hit"] > 0
        assert cache.requests.count.get("fetch", 0) == 0
