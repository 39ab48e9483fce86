"""The roads of docs/: a page names the files that a real run enters, and no others."""

import gc
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fmscale.data.open import open_loader
from fmscale.store.open import open_store
from tests.checkpoint.states import Fleet, take_lease
from tests.helpers.corpus import T, store_corpus
from tests.helpers.tracing import ROOT, entered

ROOMS = ("fmscale/data/", "fmscale/store/", "fmscale/checkpoint/")


def named(page: str, heading: str) -> list[str]:
    """Files that begin the list entries of a section, such as "3. `data/loader.py`"."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return re.findall(r"^(?:\d+\.|-) `([\w/]+\.py)`", section, re.MULTILINE)


def read_a_sample(folder: Path) -> Callable[[], object]:
    """The first microbatch of a loader, through a node cache."""
    url = str(folder / "store")
    store_corpus(open_store(url))

    def first_batch() -> None:
        with open_loader(url, dataset="corpus", sequence_length=T, batch=8, cache_dir=folder / "cache") as loader:
            assert next(loader).loss_weights.shape == (8, T)

    return first_batch


def save(folder: Path) -> Callable[[], object]:
    """A save by the persist process, from the snapshot to the log entry."""
    url = str(folder / "store")
    lease = take_lease(url)

    def saved() -> None:
        with Fleet(url, lease=lease) as fleet:
            fleet.saved(1)

    return saved


@pytest.mark.parametrize(
    ("name", "prepare", "most"), [("a-samples-road", read_a_sample, 14), ("a-saves-road", save, 12)]
)
def test_a_road_names_the_files_that_are_entered(
    name: str, prepare: Callable[[Path], Callable[[], object]], most: int, tmp_path: Path
) -> None:
    """The road has at most `most` files, so that it takes five minutes to read; the others are leaves."""
    page = (ROOT / "docs" / f"{name}.md").read_text()
    told, leaves = named(page, "The road"), named(page, "Leaves")
    assert len(told) <= most
    run = prepare(tmp_path)
    gc.collect()  # loaders of earlier tests
    seen = {file.removeprefix("fmscale/") for file in entered(run) if file.startswith(ROOMS)}
    files = [*told, *leaves]
    assert (sorted(seen - set(files)), sorted(set(files) - seen)) == ([], []), "(missing on the page, not entered)"
    assert len(files) == len(set(files)), "a file stands on the page once"
