"""The loader over tiers: the batches of a plain loader, and each chunk from the source that has it."""

import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest

from fmscale.config import SourceConfig
from fmscale.data.loader import Loader
from fmscale.data.open import open_loader
from fmscale.data.sources import make_sources
from fmscale.data.views.token_view import TokenView
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from fmscale.store.tiers.cache import NodeCache
from tests.helpers.cache_user import used_bytes
from tests.helpers.copy_tier import ABSENT, BAD, GOOD, CopyTier, copy_store
from tests.helpers.corpus import T, store_corpus
from tests.helpers.wire import CHUNK, Wire

SAMPLES = 320


@pytest.fixture(scope="module")
def corpus() -> Backend:
    """A store without files: the loader reads ahead, and announces units."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    store_corpus(store, scale=4)
    return store


@pytest.fixture(scope="module")
def second(corpus: Backend, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    store = open_store(str(tmp_path_factory.mktemp("second")))
    copy_store(corpus, store, "datasets")
    return store


def delivered(store: Backend, **options: object) -> tuple[list[bytes], Loader]:
    """Batches of SAMPLES samples."""
    arguments: dict[str, object] = {"dataset": "corpus", "sequence_length": T, "batch": 16, "seed": 3}
    with open_loader(store, **(arguments | options)) as loader:  # type: ignore[arg-type]
        return [next(loader).tokens.numpy().tobytes() for _ in range(SAMPLES // 16)], loader


def mixed(key: str, chunk: int) -> int:
    return (ABSENT, GOOD, BAD, GOOD)[(zlib.crc32(key.encode()) + chunk) % 4]


@pytest.mark.parametrize("cached", [False, True])
def test_batches_do_not_depend_on_tiers(corpus: Backend, second: Backend, tmp_path: Path, cached: bool) -> None:
    right, _ = delivered(corpus)
    wire = Wire(corpus)
    tier = CopyTier(second, mixed, lambda _, region: region % 2 == 0)
    folder = tmp_path / "cache" if cached else None
    batches, loader = delivered(wire, tiers=[tier], cache_dir=folder, region_bytes=2 * CHUNK, nodes=2)
    assert batches == right
    states = [mixed(*chunk) for chunk in tier.asked]
    [use] = loader._readers.fetcher.tiers.uses
    assert (use.served, use.dropped, use.failed) == (states.count(GOOD), states.count(BAD), 0)
    assert min(use.served, use.dropped, states.count(ABSENT)) > 0
    from_store = {
        (key, start // tier.sizes[key] + i)
        for key, (start, size) in wire.ranges()
        for i in range(-(-size // tier.sizes[key]))
    }
    assert from_store == {chunk for chunk in tier.asked if mixed(*chunk) != GOOD}, "the store serves the rest"
    assert len(tier.advised) > 0
    if folder is not None:
        kept = used_bytes(NodeCache(folder, 1 << 30))
        mine = [(key, chunk) for key, chunk in tier.asked if chunk // (2 * CHUNK // tier.sizes[key]) % 2 == 0]
        assert kept == sum(tier.sizes[key] for key, _ in mine)
        assert len(mine) == len(set(mine)) < len(set(tier.asked)), "a chunk that is kept is fetched once"


def test_a_tier_that_goes_away_costs_only_reads_of_the_store(
    corpus: Backend, second: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    right, _ = delivered(corpus)
    tier = CopyTier(second, error=ConnectionResetError(104, "Connection reset by peer"))
    batches, loader = delivered(corpus, tiers=[tier])
    assert batches == right
    assert loader._readers.fetcher.tiers.uses[0].failed > 1
    assert len([record for record in caplog.records if "tier 0" in record.message]) == 1


@pytest.mark.parametrize(
    ("nodes", "share", "tiers", "regions"),
    [
        (1, 1.2, 1, True),
        (1, 1.05, 1, False),
        (4, 0.3, 1, True),
        (4, 0.26, 1, False),
        (1, 2.1, 0, True),
        (2, 9, 0, False),
    ],
)
def test_whole_regions_are_fetched_if_the_nodes_together_have_room(
    corpus: Backend, second: Backend, tmp_path: Path, nodes: int, share: float, tiers: int, regions: bool
) -> None:
    """Without tiers a node alone, with room for the data twice."""
    [source] = make_sources(corpus, [SourceConfig(dataset="corpus")], sequence_length=T, seed=0)
    assert isinstance(source.view, TokenView)
    held = int(share * source.view.kept * np.dtype(source.view.dtype).itemsize)
    _, loader = delivered(
        corpus, tiers=[CopyTier(second)] * tiers, nodes=nodes, cache_dir=tmp_path / "cache", cache_bytes=held
    )
    fetcher = loader._readers.fetcher
    assert (fetcher.whole_regions, fetcher.region_bytes > 0) == (regions, regions or tiers == 1)
