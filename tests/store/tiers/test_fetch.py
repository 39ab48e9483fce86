"""Verified reads: a bad copy is dropped and read again; a chunk without an intact copy is named, never returned."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fmscale.errors import AccessDenied, CorruptData, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.handle import ObjectRef
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.fetch import CorruptChunk, Fetcher, chunk_span
from tests.helpers.faulty_backend import Fault
from tests.helpers.segments import flip, truncate
from tests.helpers.wire import CHUNK, CHUNKS, ROOMY, Wire, part, read


def test_chunk_span_ends_with_the_object() -> None:
    short = ObjectRef(key="k", bytes=2500, chunk_bytes=1000, crc32c=np.zeros(3, np.uint32), digest="d")
    assert [chunk_span(short, *pair) for pair in ((0, 1), (1, 2), (2, 1))] == [
        (0, 1000),
        (1000, 1500),
        (2000, 500),
    ]


def test_every_range_has_its_bytes(ref: ObjectRef, wire: Wire, data: bytes) -> None:
    assert len(ref.crc32c) == CHUNKS
    fetcher = Fetcher(wire)
    for first, stop in itertools.combinations(range(CHUNKS + 1), 2):
        assert read(fetcher, ref, first, stop - first) == part(ref, data, first, stop - first)
    assert (fetcher.reread, fetcher.dropped) == (0, 0)
    assert len(wire.reads) == CHUNKS * (CHUNKS + 1) // 2, "one request a range"


@pytest.mark.parametrize("cached", [False, True])
def test_a_flip_on_the_wire_is_read_again(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path, cached: bool
) -> None:
    fetcher = Fetcher(wire, NodeCache(tmp_path / "cache", ROOMY) if cached else None)
    wire.flips = [2 * ref.chunk_bytes]
    assert read(fetcher, ref, 1, 3) == part(ref, data, 1, 3)
    assert fetcher.reread == 1
    assert len(wire.reads) == 2
    assert read(fetcher, ref, 1, 3) == part(ref, data, 1, 3)
    assert fetcher.dropped == 0, "the cache was given the good bytes"
    assert len(wire.reads) == (2 if cached else 3)


def test_a_wire_that_flips_often_still_gives_what_single_reads_give(ref: ObjectRef, wire: Wire, data: bytes) -> None:
    fetcher = Fetcher(wire)
    wire.flips = [2 * ref.chunk_bytes, 2 * ref.chunk_bytes]
    assert read(fetcher, ref, 1, 3) == part(ref, data, 1, 3)


@pytest.mark.parametrize("cached", [False, True])
def test_a_chunk_bad_on_the_store_is_named_and_not_returned(
    local_store: Backend, ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path, cached: bool
) -> None:
    fetcher = Fetcher(wire, NodeCache(tmp_path / "cache", ROOMY) if cached else None)
    flip(local_store, ref.key, 3 * ref.chunk_bytes + 5)
    for first, chunks in ((1, 4), (3, 1), (0, CHUNKS)):
        with pytest.raises(CorruptChunk, match=f"chunk 3 of {ref.key}") as caught:
            read(fetcher, ref, first, chunks)
        assert (caught.value.key, caught.value.chunk) == (ref.key, 3)
        assert "dataset verify" in caught.value.remedy
        assert isinstance(caught.value, CorruptData)
    assert read(fetcher, ref, 0, 3) == part(ref, data, 0, 3)
    assert read(fetcher, ref, 4, 2) == part(ref, data, 4, 2)
    flip(local_store, ref.key, 3 * ref.chunk_bytes + 5)
    assert read(fetcher, ref, 0, CHUNKS) == data, "nothing bad was kept"
    assert fetcher.dropped == 0


def test_of_several_bad_chunks_the_first_is_named(local_store: Backend, ref: ObjectRef) -> None:
    for chunk in (4, 2):
        flip(local_store, ref.key, chunk * ref.chunk_bytes)
    with pytest.raises(CorruptChunk) as caught:
        read(Fetcher(local_store), ref, 1, 5)
    assert caught.value.chunk == 2


def cut(store: Backend, key: str) -> None:
    truncate(store, key, 2 * CHUNK + 100)


def remove(store: Backend, key: str) -> None:
    store.delete(key)


@pytest.mark.parametrize(("damage", "first_lost"), [(cut, 2), (remove, 0)])
def test_truncated_and_missing_objects(
    local_store: Backend,
    ref: ObjectRef,
    data: bytes,
    damage: Callable[[Backend, str], None],
    first_lost: int,
) -> None:
    damage(local_store, ref.key)
    fetcher = Fetcher(local_store)
    with pytest.raises(CorruptChunk, match=ref.key) as caught:
        read(fetcher, ref, 0, CHUNKS)
    assert caught.value.chunk == first_lost
    assert isinstance(caught.value.__cause__, CorruptData) == (damage is cut)
    for chunk in range(CHUNKS):
        if chunk < first_lost:
            assert read(fetcher, ref, chunk, 1) == part(ref, data, chunk, 1)
        else:
            with pytest.raises(CorruptChunk):
                read(fetcher, ref, chunk, 1)


@pytest.mark.parametrize("cached", [False, True])
def test_an_outage_is_not_taken_for_damage(ref: ObjectRef, wire: Wire, tmp_path: Path, cached: bool) -> None:
    fetcher = Fetcher(wire, NodeCache(tmp_path / "cache", ROOMY) if cached else None)
    wire.inject(Fault.UNAVAILABLE, "read_into")
    with pytest.raises(StoreUnavailable):
        read(fetcher, ref, 0, 2)
    assert fetcher.reread == 0


def test_refused_access_is_not_taken_for_damage(ref: ObjectRef, wire: Wire) -> None:
    class Refusing(Wire):
        def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
            raise AccessDenied("the store refuses to serve", found=key)

    with pytest.raises(AccessDenied):
        read(Fetcher(Refusing(wire)), ref, 0, 2)


def flip_cached(cache: NodeCache, ref: ObjectRef, chunk: int) -> None:
    """Flip a bit of a chunk in the cache's file."""
    file = cache._file(ref)
    assert file is not None
    with Path(file.path).open("r+b") as raw:
        raw.seek(file.layout.data + chunk * ref.chunk_bytes + 31)
        (byte,) = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([byte ^ 1]))


def test_a_flipped_cached_copy_is_dropped_and_fetched_again(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetcher = Fetcher(wire, cache)
    for _ in range(3):
        assert read(fetcher, ref, 0, CHUNKS) == data
    assert len(wire.reads) == 1, "the cache serves"
    flip_cached(cache, ref, 2)
    assert read(fetcher, ref, 1, 3) == part(ref, data, 1, 3)
    assert fetcher.dropped == 1
    assert wire.reads[1:] == [(ref.chunk_bytes, 3 * ref.chunk_bytes)]
    assert read(fetcher, ref, 0, CHUNKS) == data
    assert len(wire.reads) == 3, "what was dropped is cached again"
    assert read(fetcher, ref, 0, CHUNKS) == data
    assert len(wire.reads) == 3
    assert fetcher.dropped == 1


def test_bytes_of_any_range_come_from_the_cache_without_a_copy_and_checked(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetcher = Fetcher(wire, cache)
    read(fetcher, ref, 0, CHUNKS)
    spans = [(0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (7, 3 * CHUNK), (ref.bytes - 5, 5), (0, ref.bytes)]
    with monkeypatch.context() as patch:
        patch.setattr(fetcher, "read_chunks", lambda *_: pytest.fail("read through scratch"))
        for start, length in spans:
            out = bytearray(length)
            fetcher.read(ref, start, memoryview(out))
            assert out == data[start : start + length]
    flip_cached(cache, ref, 2)
    out = bytearray(2 * CHUNK)
    fetcher.read(ref, 2 * CHUNK - 9, memoryview(out))
    assert out == data[2 * CHUNK - 9 :][: len(out)]
    assert (fetcher.dropped, len(wire.reads)) == (1, 2)


def test_a_bad_cached_copy_of_a_chunk_bad_on_the_store(
    local_store: Backend, ref: ObjectRef, wire: Wire, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetcher = Fetcher(wire, cache)
    read(fetcher, ref, 0, CHUNKS)
    flip_cached(cache, ref, 2)
    flip(local_store, ref.key, 2 * ref.chunk_bytes)
    with pytest.raises(CorruptChunk) as caught:
        read(fetcher, ref, 0, CHUNKS)
    assert caught.value.chunk == 2


def test_concurrent_readers_share_fetches_and_heal_what_is_bad(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", ROOMY)
    fetchers = [Fetcher(wire, cache if i % 2 else NodeCache(tmp_path / "cache", ROOMY)) for i in range(4)]
    barrier = threading.Barrier(8)

    def reader(seed: int) -> None:
        rng = random.Random(seed)
        barrier.wait(20)
        for _ in range(30):
            first = rng.randrange(CHUNKS)
            chunks = rng.randint(1, CHUNKS - first)
            assert read(fetchers[seed % 4], ref, first, chunks) == part(ref, data, first, chunks)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reader, range(8)))
    fetched = Counter(
        chunk
        for start, size in wire.reads
        for chunk in range(start // ref.chunk_bytes, (start + size) // ref.chunk_bytes)
    )
    assert fetched == dict.fromkeys(range(CHUNKS), 1), "one fetch a chunk"

    flip_cached(cache, ref, 4)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reader, range(8)))
    assert sum(fetcher.dropped for fetcher in fetchers) >= 1


SPANS = [
    (0, CHUNK),
    (1, 1),
    (100, CHUNK - 100),
    (CHUNK - 1, 2),
    (CHUNK + 4464, 3 * CHUNK + 3392),
    (CHUNK, 2 * CHUNK),
    (3, 6 * CHUNK - 216),
]


@pytest.mark.parametrize("cached", [False, True])
def test_any_bytes_are_read_from_the_chunks_that_hold_them(
    ref: ObjectRef, wire: Wire, data: bytes, tmp_path: Path, cached: bool
) -> None:
    fetcher = Fetcher(wire, NodeCache(tmp_path / "cache", ROOMY) if cached else None)
    for start, length in SPANS:
        length = min(length, len(data) - start)
        out = bytearray(length)
        fetcher.read(ref, start, memoryview(out))
        assert out == data[start : start + length], (start, length)
    assert fetcher.reread == 0


@pytest.mark.parametrize("place", ["before", "inside", "behind"])
def test_a_flip_anywhere_in_a_chunk_that_is_needed_is_seen(
    local_store: Backend, ref: ObjectRef, wire: Wire, data: bytes, place: str
) -> None:
    start, length = ref.chunk_bytes + 1000, 2 * ref.chunk_bytes
    at = {"before": start - 1000, "inside": start + length // 2, "behind": start + length}[place]
    out = bytearray(length)
    fetcher = Fetcher(wire)
    wire.flips = [at]
    fetcher.read(ref, start, memoryview(out))
    assert out == data[start : start + length]
    assert fetcher.reread == 1
    flip(local_store, ref.key, at)
    with pytest.raises(CorruptChunk) as caught:
        fetcher.read(ref, start, memoryview(out))
    assert caught.value.chunk == at // ref.chunk_bytes


def test_the_store_is_told_of_the_chunks_that_will_be_read(ref: ObjectRef, wire: Wire) -> None:
    told = []
    wire.advise = lambda *range_: told.append(range_)  # type: ignore[method-assign]
    Fetcher(wire).advise(ref, ref.chunk_bytes + 5, ref.chunk_bytes)
    Fetcher(wire).advise(ref, ref.bytes - 1, 1)
    last = (len(ref.crc32c) - 1) * ref.chunk_bytes
    assert told == [
        (ref.key, ref.chunk_bytes, 2 * ref.chunk_bytes),
        (ref.key, last, ref.bytes - last),
    ]
