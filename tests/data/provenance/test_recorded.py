"""A run that resumes with other data is refused, by key, with the old and the new value."""

from typing import Any

import pytest

from fmscale.config import SourceConfig
from fmscale.data.open import open_loader
from fmscale.data.views.mask import find_documents, make_mask
from fmscale.errors import ConfigError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from tests.helpers.corpus import T, store_corpus
from tests.helpers.segments import documents, write_commit


@pytest.fixture(scope="module")
def store() -> Backend:
    backend = open_store("memory://recorded-tests")
    for name in ("corpus", "other"):
        store_corpus(backend, name)
    return backend


def begin(store: Backend, run: str, specs: list[SourceConfig], **options: Any) -> tuple[int, ...]:
    """The commits of the run's first source."""
    arguments: dict[str, Any] = {"sequence_length": T, "batch": 4, "window": 64, "prefetch": False, **options}
    with open_loader(store, sources=specs, run=run, **arguments) as loader:
        return loader.plan.sources[0].view.commits


def refused(store: Backend, run: str, specs: list[SourceConfig], **options: Any) -> str:
    with pytest.raises(ConfigError, match=f"run {run} was recorded with other data") as caught:
        begin(store, run, specs, **options)
    assert "train.run" in caught.value.remedy
    return str(caught.value.found)


def test_what_differs_is_named_with_both_values(store: Backend) -> None:
    dataset = open_dataset(store, "corpus")
    mask = make_mask(dataset, find_documents(dataset, commits=[1]))
    begin(store, "demo", [SourceConfig(dataset="corpus", commits=(0,))])
    plain = [SourceConfig(dataset="corpus")]
    assert begin(store, "demo", plain) == (0,), "no commits named: what was recorded"
    said = {
        refused(store, "demo", [SourceConfig(dataset="corpus", commits=(1,))]),
        refused(store, "demo", [SourceConfig(dataset="corpus", masks=(mask,))]),
        refused(store, "demo", [SourceConfig(dataset="other")]),
        refused(store, "demo", plain, window=65),
        refused(store, "demo", plain, sequence_length=T + 1),
        refused(store, "demo", [*plain, SourceConfig(dataset="other")]),
        refused(store, "demo", [SourceConfig(dataset="corpus", seed=7)]).partition("recorded")[0],
        refused(store, "demo", plain, seed=1).partition("recorded")[0],
    }
    assert said == {
        "data.sources.0.commits: recorded [0], asked for [1]",
        f"data.sources.0.masks: recorded [], asked for ['{mask}']",
        "data.sources.0.dataset: recorded corpus, asked for other",
        "data.window: recorded 64, asked for 65",
        f"data.sequence_length + 1: recorded {T}, asked for {T + 1}",
        "data.sources: recorded ['corpus'], asked for ['corpus', 'other']",
        "data.sources.0.seed: ",
        "data.sources.0.seed (made from data.seed): ",
    }


def test_weights_are_shares(store: Backend) -> None:
    pair = [SourceConfig(dataset="corpus", weight=3), SourceConfig(dataset="other")]
    begin(store, "mixed", pair)
    begin(store, "mixed", [SourceConfig(dataset="corpus", weight=6), SourceConfig(dataset="other", weight=2)])
    assert refused(store, "mixed", [SourceConfig(dataset="corpus"), pair[1]]) == (
        "data.sources.0.weight: recorded 0.75 of the samples, asked for 0.5 of the samples; "
        "data.sources.1.weight: recorded 0.25 of the samples, asked for 0.5 of the samples"
    )


def test_a_later_commit_is_no_difference_unless_it_is_named(memory_store: Backend) -> None:
    store_corpus(memory_store)
    begin(memory_store, "demo", [SourceConfig(dataset="corpus")])
    write_commit(memory_store, "corpus", {"train": [documents([500] * 4, seed=9)]}, job="late")
    assert begin(memory_store, "demo", [SourceConfig(dataset="corpus")]) == (0, 1)
    assert begin(memory_store, "demo", [SourceConfig(dataset="corpus", commits=(1, 0))]) == (0, 1)
    assert "recorded [0, 1], asked for [0, 1, 2]" in refused(
        memory_store, "demo", [SourceConfig(dataset="corpus", commits=(0, 1, 2))]
    )


def test_a_mask_that_is_not_there(memory_store: Backend) -> None:
    store_corpus(memory_store)
    with pytest.raises(ObjectNotFound, match="has no such mask") as caught:
        begin(memory_store, "demo", [SourceConfig(dataset="corpus", masks=("0" * 32,))])
    assert "`fmscale dataset mask` makes one" in caught.value.remedy
    dataset = open_dataset(memory_store, "corpus")
    mask = make_mask(dataset, find_documents(dataset, commits=[1]))
    with pytest.raises(ObjectNotFound) as caught:
        begin(memory_store, "demo", [SourceConfig(dataset="corpus", masks=(mask[:-1] + "x",))])
    assert mask in caught.value.remedy
