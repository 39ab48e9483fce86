"""Regions: announced units are fetched once into the node's cache, with the bytes around them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.handle import ObjectRef
from fmscale.store.tiers import fetch
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.fetch import CorruptChunk, Fetcher, chunk_span
from tests.helpers.faulty_backend import Fault
from tests.helpers.segments import flip
from tests.helpers.wire import CHUNK, CHUNKS, ROOMY, Wire, part, read

REGION = 3 * CHUNK


def regional(wire: Wire, folder: Path, limit: int = ROOMY) -> Fetcher:
    return Fetcher(wire, NodeCache(folder, limit), region_bytes=REGION)


def advise(fetcher: Fetcher, ref: ObjectRef, first: int, chunks: int) -> None:
    fetcher.advise(ref, *chunk_span(ref, first, chunks))


def test_what_is_announced_brings_its_region_into_the_cache(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path
) -> None:
    fetcher = regional(wire, tmp_path / "cache")
    advise(fetcher, ref, 1, 1)
    assert wire.reads == [(0, REGION)]
    advise(fetcher, ref, 0, CHUNKS)
    assert wire.reads[1:] == [(REGION, ref.bytes - REGION)], "only what was missing"
    assert read(fetcher, ref, 0, CHUNKS) == data
    assert len(wire.reads) == 2


def test_what_was_not_announced_is_fetched_alone(ref: ObjectRef, wire: Wire, tmp_path: Path) -> None:
    fetcher = regional(wire, tmp_path / "cache")
    read(fetcher, ref, 1, 1)
    assert wire.reads == [(ref.chunk_bytes, ref.chunk_bytes)]


def test_a_read_waits_for_the_region_under_way_and_nobody_fetches_it_twice(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path
) -> None:
    fetcher = regional(wire, tmp_path / "cache")
    asked, go_on = threading.Event(), threading.Event()
    real = wire.read_into

    def slow(key: str, start: int, *buffers: memoryview) -> None:
        asked.set()
        assert go_on.wait(20)
        real(key, start, *buffers)

    wire.read_into = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(advise, fetcher, ref, 0, 1)
        assert asked.wait(20)
        advise(fetcher, ref, 2, 1)  # does not wait
        reading = pool.submit(read, fetcher, ref, 1, 1)
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.05)
        go_on.set()
        first.result()
        assert reading.result() == part(ref, data, 1, 1)
    assert wire.reads == [(0, REGION)]


def test_an_outage_while_a_region_is_fetched_is_told_and_leaves_nobody_waiting(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path
) -> None:
    fetcher = regional(wire, tmp_path / "cache")
    wire.inject(Fault.UNAVAILABLE, "read_into")
    with pytest.raises(StoreUnavailable):
        advise(fetcher, ref, 1, 1)
    assert read(fetcher, ref, 1, 1) == part(ref, data, 1, 1)
    advise(fetcher, ref, 1, 1)
    assert read(fetcher, ref, 0, 3) == part(ref, data, 0, 3)


def test_damage_elsewhere_in_the_region_harms_nobody(
    local_store: Backend, ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path
) -> None:
    flip(local_store, ref.key, 2 * ref.chunk_bytes + 9)
    fetcher = regional(wire, tmp_path / "cache")
    advise(fetcher, ref, 0, 2)
    assert read(fetcher, ref, 0, 2) == part(ref, data, 0, 2)
    with pytest.raises(CorruptChunk) as caught:
        read(fetcher, ref, 1, 2)
    assert caught.value.chunk == 2


def test_a_flip_in_a_region_costs_a_second_read_of_its_run_alone(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "RUN_BYTES", CHUNK)
    fetcher = regional(wire, tmp_path / "cache")
    wire.flips = [ref.chunk_bytes + 8]
    advise(fetcher, ref, 0, 1)
    assert wire.reads == [(0, REGION), (ref.chunk_bytes, ref.chunk_bytes)]
    assert fetcher.reread == 1
    assert read(fetcher, ref, 0, 3) == part(ref, data, 0, 3)
    assert (len(wire.reads), fetcher.dropped) == (2, 0), "the cache was given good bytes alone"


def test_a_full_cache_is_sent_no_regions(ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path) -> None:
    fetcher = regional(wire, tmp_path / "cache", limit=2 * CHUNK)
    advise(fetcher, ref, 0, 1)
    before = len(wire.reads)
    for chunk in range(CHUNKS):
        advise(fetcher, ref, chunk, 1)
        assert read(fetcher, ref, chunk, 1) == part(ref, data, chunk, 1)
    assert fetcher.region_bytes == 0
    assert all(size <= ref.chunk_bytes for _, size in wire.reads[before:])
