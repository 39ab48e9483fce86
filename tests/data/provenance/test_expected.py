"""Hashes of the plan's samples and of received samples are equal, though computed by separate code."""

from pathlib import Path

import pyarrow as pa
import pytest

from fmscale.config import SourceConfig
from fmscale.data.plan.plan import Plan, Stage
from fmscale.data.provenance.delivery import order_hash, read_records, without_repeats
from fmscale.data.provenance.expected import expected_samples
from fmscale.data.sources import make_sources
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.data.provenance.test_audit import record
from tests.helpers.corpus import T, store_corpus


@pytest.fixture(scope="module")
def store() -> Backend:
    backend = open_store("memory://planned-tests")
    store_corpus(backend)
    return backend


def planned(store: Backend, seed: int) -> pa.Table:
    specs = [SourceConfig(dataset="corpus")]
    sources = make_sources(store, specs, sequence_length=T, seed=seed)
    return expected_samples(store, Plan([Stage(from_k=0, sources=tuple(sources))]), 0, 64)


def test_planned_equals_delivered(store: Backend, tmp_path: Path) -> None:
    delivered = read_records(record(store, tmp_path, 64, ranks=3))
    table = planned(store, 3)
    assert table.select(["k", "source", "row", "digest", "pieces"]).equals(
        delivered.select(["k", "source", "row", "digest", "pieces"])
    )
    assert order_hash(table) == order_hash(delivered)


def test_another_seed_is_another_hash(store: Backend) -> None:
    assert order_hash(planned(store, 3)) != order_hash(planned(store, 4))


def test_repeats_count_once_and_must_agree(store: Backend, tmp_path: Path) -> None:
    once = read_records(record(store, tmp_path, 32))
    twice = pa.concat_tables([once, once.slice(8, 8)]).sort_by("k")
    assert order_hash(without_repeats(twice)) == order_hash(once)
    other = once.slice(9, 1).set_column(0, "k", pa.array([8], pa.uint64()))
    mixed = pa.concat_tables([once, other.cast(once.schema)]).sort_by("k")
    with pytest.raises(DataError, match="sample 8"):
        without_repeats(mixed)
