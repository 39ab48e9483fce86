"""The loader on a real S3 server: one fetch a chunk over the ranks of a node, and faults that only cost time."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmscale.data.loader import Loader
from fmscale.data.open import open_loader
from fmscale.store.open import open_store
from fmscale.store.segments.tokens_writer import TOKEN_CHUNK_BYTES
from fmscale.store.tiers.cache import NodeCache
from tests.helpers.cache_user import used_bytes
from tests.helpers.corpus import Corpus, T, store_corpus
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.ranks import run_ranks
from tests.helpers.s3_server import S3Server
from tests.helpers.segments import documents, write_commit

SAMPLES = 320
BATCH = 16


@pytest.fixture(scope="module")
def url(s3: S3Server, s3_bucket: str) -> str:
    return s3.url(s3_bucket, uuid.uuid4().hex)


@pytest.fixture(scope="module")
def corpus(url: str) -> Corpus:
    return store_corpus(open_store(url), scale=8)


@pytest.fixture(scope="module")
def right(corpus: Corpus) -> dict[int, bytes]:
    """Samples from a store in memory, without any cache."""
    store = open_store("memory://remote-loader")
    store_corpus(store, scale=8)
    return delivered(open_corpus(store))


def open_corpus(store: object, **options: object) -> Loader:
    arguments: dict[str, object] = {"dataset": "corpus", "sequence_length": T, "batch": BATCH, "seed": 3}
    return open_loader(store, **(arguments | options))  # type: ignore[arg-type]


def delivered(loader: Loader) -> dict[int, bytes]:
    """Token bytes by sample, up to SAMPLES."""
    found: dict[int, bytes] = {}
    with loader:
        while loader.k < SAMPLES:
            batch = next(loader)
            found |= {int(k): batch.tokens[i].numpy().tobytes() for i, k in enumerate(batch.k)}
    return found


def cache_of(loader: Loader) -> NodeCache:
    cache = loader._readers.fetcher.cache
    assert isinstance(cache, NodeCache)
    return cache


def on_rank(
    rank: int, ranks: int, url: str, folder: str, environment: dict[str, str]
) -> tuple[dict[int, bytes], dict[str, int]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        loader = open_corpus(url, cache_dir=folder, dp_rank=rank, dp_size=ranks)
        return delivered(loader), dict(cache_of(loader).requests.bytes)


def test_the_ranks_of_a_node_fetch_each_chunk_once(
    s3: S3Server, url: str, right: dict[int, bytes], tmp_path: Path
) -> None:
    rounds = []
    for ranks in (3, 2):
        parts = run_ranks(on_rank, ranks, url, str(tmp_path / "cache"), s3.environment)
        assert {k: row for found, _ in parts for k, row in found.items()} == right
        rounds.append([sum(count.get(kind, 0) for _, count in parts) for kind in ("fetch", "hit", "bypass")])
    (fetched, hit, bypassed), (fetched_again, hit_again, _) = rounds
    held = used_bytes(NodeCache(tmp_path / "cache", 1 << 30))
    assert (bypassed, fetched_again) == (0, 0)
    assert 0 < fetched <= held, "no chunk was fetched twice"
    assert held <= fetched + 8 * TOKEN_CHUNK_BYTES, "the cache holds what was fetched; short chunks count as whole"
    assert min(hit, hit_again) > 0


def test_a_node_that_has_room_for_all_fetches_in_few_requests(s3: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    """8 MB in 32 units: two regions, and the units of the first batch of two rows."""
    url = s3.url(s3_bucket, uuid.uuid4().hex)
    write_commit(open_store(url), "large", {"train": [documents([4_000_000])]}, job="one")
    requests, content = [], []
    for nodes in (1, 2):
        with open_corpus(
            url, dataset="large", sequence_length=4001, batch=2, cache_dir=tmp_path / f"of {nodes}", nodes=nodes
        ) as loader:
            content.append([next(loader).tokens.numpy().tobytes() for _ in range(480)])
            requests.append(loader._readers.fetcher.backend.requests.count["get_range"])
    alone, shared = requests
    assert content[0] == content[1]
    assert alone < 16 < 32 <= shared


def test_a_cache_that_is_small_changes_no_batch(url: str, right: dict[int, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    loader = open_corpus(url, cache_dir=folder, cache_bytes=6 * TOKEN_CHUNK_BYTES, memory_bytes=2 << 20)
    assert delivered(loader) == right
    cache = cache_of(loader)
    assert cache.requests.bytes["bypass"] + cache.requests.bytes["evict"] > 0
    assert used_bytes(cache) <= 6 * TOKEN_CHUNK_BYTES


def test_every_chunk_damaged_in_the_cache_is_fetched_again(url: str, right: dict[int, bytes], tmp_path: Path) -> None:
    assert delivered(open_corpus(url, cache_dir=tmp_path / "cache")) == right
    for path in (tmp_path / "cache").glob("??/*"):
        data = bytearray(path.read_bytes())
        data[8192::TOKEN_CHUNK_BYTES] = bytes(byte ^ 1 for byte in data[8192::TOKEN_CHUNK_BYTES])
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(data[8192:])
    loader = open_corpus(url, cache_dir=tmp_path / "cache")
    assert delivered(loader) == right
    assert loader._readers.fetcher.dropped > 0


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.host, s3.port) as proxy:
        yield proxy


@pytest.mark.slow
def test_refusals_stalls_and_resets_cost_time_only(
    s3: S3Server, url: str, right: dict[int, bytes], proxy: FaultProxy
) -> None:
    behind = url.replace(s3.endpoint, proxy.endpoint)
    proxy.inject("503", seconds=1)
    proxy.inject("reset", count=3, method="GET", after_bytes=1000)
    proxy.inject("stall-body", count=1, method="GET", after_bytes=1000, stall=60)
    assert delivered(open_corpus(behind, memory_bytes=2 << 20)) == right
    assert all(proxy.counters()[kind] > 0 for kind in ("503", "reset", "stall-body"))
