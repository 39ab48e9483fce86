"""Tiers between the cache and the store: each chunk from the first source that has it with its recorded bytes."""

import logging
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmscale.errors import ConfigError, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from fmscale.store.segments.handle import ObjectRef
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.fetch import Fetcher, chunk_span
from tests.helpers.cache_user import used_bytes
from tests.helpers.copy_tier import ABSENT, BAD, GOOD, CopyTier, copy_store
from tests.helpers.segments import flip
from tests.helpers.wire import CHUNK, CHUNKS, ROOMY, Wire, part, read
from tests.store.tiers.test_fetch import flip_cached

REGION = 3 * CHUNK


@pytest.fixture
def second(local_store: Backend, ref: ObjectRef, tmp_path: Path) -> Backend:
    store = open_store(str(tmp_path / "second"))
    copy_store(local_store, store)
    return store


def chunks_read(wire: Wire) -> list[int]:
    return sorted(chunk for start, size in wire.reads for chunk in range(start // CHUNK, -(-(start + size) // CHUNK)))


STATES = st.lists(st.sampled_from([ABSENT, GOOD, BAD]), min_size=CHUNKS, max_size=CHUNKS)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STATES, min_size=1, max_size=3), st.tuples(*[st.integers(0, CHUNKS - 1)] * 2), st.booleans())
def test_the_store_serves_exactly_the_chunks_that_no_tier_serves_well(
    local_store: Backend,
    second: Backend,
    ref: ObjectRef,
    data: bytes,
    tmp_path: Path,
    states: list[list[int]],
    ends: tuple[int, int],
    cached: bool,
) -> None:
    wire = Wire(local_store)
    tiers = [CopyTier(second, lambda _, chunk, own=own: own[chunk]) for own in states]  # type: ignore[misc]
    cache = NodeCache(tmp_path / uuid.uuid4().hex, ROOMY) if cached else None
    fetcher = Fetcher(wire, cache, tiers, region_bytes=REGION)
    first, stop = min(ends), max(ends) + 1
    assert read(fetcher, ref, first, stop - first) == part(ref, data, first, stop - first)
    left = list(range(first, stop))
    for tier, own, use in zip(tiers, states, fetcher.tiers.uses, strict=True):
        assert [chunk for _, chunk in tier.asked] == left, "a tier is asked only for the chunks that are missing"
        served = [chunk for chunk in left if own[chunk] == GOOD]
        assert (use.served, use.dropped, use.failed) == (len(served), sum(own[i] == BAD for i in left), 0)
        left = [chunk for chunk in left if own[chunk] != GOOD]
    assert chunks_read(wire) == left
    assert (fetcher.reread, fetcher.dropped) == (0, 0)
    if cached:
        asked = [len(tier.asked) for tier in tiers]
        assert read(fetcher, ref, first, stop - first) == part(ref, data, first, stop - first)
        assert ([len(tier.asked) for tier in tiers], chunks_read(wire)) == (asked, left), "the cache was given all"


@pytest.mark.parametrize("error", [OSError("gone"), StoreUnavailable("no answer"), ConnectionResetError(104, "reset")])
def test_a_tier_that_fails_counts_as_absent_and_is_told_once(
    ref: ObjectRef, wire: Wire, second: Backend, data: bytes, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    broken, behind = CopyTier(second, error=error), CopyTier(second, lambda _, chunk: int(chunk < 4))
    fetcher = Fetcher(wire, None, [broken, behind], region_bytes=REGION)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            fetcher.advise(ref, 0, ref.bytes)
            assert read(fetcher, ref, 0, CHUNKS) == data
    assert [use.failed for use in fetcher.tiers.uses] == [6, 0]
    assert [use.served for use in fetcher.tiers.uses] == [0, 12]
    assert chunks_read(wire) == [4, 4, 4, 5, 5, 5]
    [record] = caplog.records
    assert "tier 0 (CopyTier) failed" in record.message
    assert str(error) in record.message


@pytest.mark.parametrize("answer", [None, True, np.ones(CHUNKS + 1, dtype=bool), "all of them"])
def test_an_answer_of_another_form_is_a_failure(ref: ObjectRef, wire: Wire, data: bytes, answer: Any) -> None:
    tier = CopyTier(wire)
    tier.read = lambda *args, **options: answer  # type: ignore[method-assign]
    fetcher = Fetcher(wire, None, [tier], region_bytes=REGION)
    assert read(fetcher, ref, 0, CHUNKS) == data
    assert (fetcher.tiers.uses[0].failed, len(wire.reads)) == (1, 1)


def test_a_region_of_another_node_is_served_and_not_kept(
    ref: ObjectRef, wire: Wire, second: Backend, data: bytes, tmp_path: Path
) -> None:
    owned: set[int] = set()
    tier = CopyTier(second, lambda _, chunk: int(chunk != 1), lambda _, region: region in owned)
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetcher = Fetcher(wire, cache, [tier], region_bytes=REGION)
    assert read(fetcher, ref, 0, CHUNKS) == data
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["usage"], "not even a file"
    owned.add(1)
    for _ in range(2):
        assert read(fetcher, ref, 1, CHUNKS - 1) == part(ref, data, 1, CHUNKS - 1)
    assert used_bytes(cache) == 3 * CHUNK
    chunks = [chunk for _, chunk in tier.asked[CHUNKS:]]
    assert chunks == [1, 2, 3, 4, 5, 1, 2], "the cache serves the region that it keeps"
    assert chunks_read(wire) == [1, 1, 1]
    owned.clear()
    assert read(fetcher, ref, 2, 3) == part(ref, data, 2, 3)
    assert [chunk for _, chunk in tier.asked[CHUNKS + 7 :]] == [2], "what the cache has it serves, whoever owns it"


def test_a_tier_whose_owners_are_unknown_does_not_keep_the_cache_empty(
    ref: ObjectRef, wire: Wire, second: Backend, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", ROOMY)
    read(Fetcher(wire, cache, [CopyTier(second, error=OSError("gone"))], region_bytes=REGION), ref, 0, CHUNKS)
    assert used_bytes(cache) == CHUNKS * CHUNK


def test_advice_reaches_all_tiers_and_brings_the_regions_that_this_node_keeps(
    ref: ObjectRef, wire: Wire, second: Backend, data: bytes, tmp_path: Path
) -> None:
    tiers = [
        CopyTier(second, lambda _, chunk: int(chunk > 0), lambda _, region: region == 0),
        CopyTier(second, lambda _, chunk: ABSENT),
    ]
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetcher = Fetcher(wire, cache, tiers, region_bytes=REGION)
    fetcher.advise(ref, *chunk_span(ref, 1, 4), next_use=77)
    assert [tier.advised for tier in tiers] == [[(1, 4, 77)]] * 2
    assert [chunk for _, chunk in tiers[0].asked] == [0, 1, 2]
    assert tiers[0].uses == {77}
    assert wire.reads == [(0, CHUNK)]
    assert read(fetcher, ref, 0, 3) == part(ref, data, 0, 3)
    assert len(tiers[0].asked) == 3
    part_only = Fetcher(wire, cache, tiers, region_bytes=REGION, whole_regions=False)
    part_only.advise(ref, *chunk_span(ref, 4, 1))
    assert ([len(tier.advised) for tier in tiers], len(tiers[0].asked)) == ([2, 2], 3)


def test_a_full_cache_still_tells_the_tiers(ref: ObjectRef, wire: Wire, second: Backend, tmp_path: Path) -> None:
    tier = CopyTier(second)
    fetcher = Fetcher(wire, NodeCache(tmp_path / "cache", CHUNK), [tier], region_bytes=REGION)
    for _ in range(2):
        fetcher.advise(ref, 0, CHUNK)
    assert fetcher.region_bytes == REGION
    assert (len(tier.advised), len(tier.asked)) == (2, 3)
    assert wire.reads == []


def test_a_bad_cached_copy_is_replaced_from_a_tier(
    local_store: Backend, ref: ObjectRef, wire: Wire, second: Backend, data: bytes, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetcher = Fetcher(wire, cache, [CopyTier(second)], region_bytes=REGION)
    read(fetcher, ref, 0, CHUNKS)
    flip_cached(cache, ref, 2)
    flip(local_store, ref.key, 2 * CHUNK)
    assert read(fetcher, ref, 1, 3) == part(ref, data, 1, 3)
    assert (fetcher.dropped, wire.reads) == (1, [])


def test_bytes_of_a_range_come_from_tiers_too(ref: ObjectRef, wire: Wire, second: Backend, data: bytes) -> None:
    fetcher = Fetcher(wire, None, [CopyTier(second)], region_bytes=REGION)
    out = bytearray(3 * CHUNK)
    fetcher.read(ref, CHUNK - 5, memoryview(out), next_use=9)
    assert out == data[CHUNK - 5 : 4 * CHUNK - 5]
    assert (fetcher.tiers.uses[0].served, wire.reads) == (4, [])


def test_tiers_without_regions_are_refused(wire: Wire) -> None:
    with pytest.raises(ConfigError, match="tiers need regions") as caught:
        Fetcher(wire, None, [CopyTier(wire)])
    assert "same number on all nodes" in caught.value.remedy
