"""The node cache in one process: chunks that are fetched, kept, evicted and passed through."""

import errno
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

from fmscale.errors import StoreUnavailable
from fmscale.store.tiers import cache_file
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.cache_file import RESERVED, CacheFile
from fmscale.store.tiers.range_lock import locked
from tests.helpers.cache_user import CHUNK, Ref, Source, content, read, used_bytes

ROOMY = 1 << 20


def make(digest: str = "a", chunks: int = 16, short: int = 0) -> Source:
    return Source(Ref(digest=digest * 32, bytes=chunks * CHUNK - short))


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != "usage"]


def present(cache: NodeCache, source: Source) -> list[int]:
    """Chunks that are in the cache."""
    file = cache._file(source.ref)
    assert file is not None
    return [chunk for chunk, state in enumerate(file.states()) if state == 1]


def test_only_what_is_missing_is_fetched_in_runs(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 2, 3)
    read(cache, source, 2, 3)
    assert source.calls == [(2, 3)]
    read(cache, source, 0, 10)
    assert source.calls == [(2, 3), (0, 2), (5, 5)]
    read(cache, source, 1, 9)
    assert len(source.calls) == 3
    assert used_bytes(cache) == 10 * CHUNK
    again = NodeCache(tmp_path, ROOMY)
    read(again, source, 0, 10)
    assert len(source.calls) == 3, "another user of the directory finds them"


def test_the_last_chunk_may_be_short(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make(chunks=3, short=1000)
    read(cache, source, 1, 2)
    read(cache, source, 2, 1)
    read(cache, source, 0, 3)
    assert source.calls == [(1, 2), (0, 1)]


def test_a_hit_is_one_read_and_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 0, 5)
    reads: list[int] = []
    preadv = os.preadv

    def count(*args: Any) -> int:
        reads.append(1)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", count)
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("a hit opens nothing"))
    read(cache, source, 0, 5)
    assert reads == [1]


def test_dropped_chunks_are_fetched_again(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 0, 4)
    (path,) = files(tmp_path)
    before = path.stat().st_blocks
    cache.drop(source.ref, 1, 2)
    assert path.stat().st_blocks == before - 2 * CHUNK // 512
    assert used_bytes(cache) == 2 * CHUNK
    read(cache, source, 0, 4)
    assert source.calls == [(0, 4), (1, 2)]


def test_a_failed_fetch_leaves_nothing_behind(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()

    def fail(first: int, count: int, buffer: memoryview) -> None:
        buffer[:] = b"x" * len(buffer)
        raise StoreUnavailable("the store is gone")

    with pytest.raises(StoreUnavailable):
        cache.read(source.ref, 0, 2, memoryview(bytearray(2 * CHUNK)), fail, 0)
    assert present(cache, source) == []
    assert used_bytes(cache) == 0
    read(cache, source, 0, 2)


def test_threads_that_want_the_same_chunks_fetch_once(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    barrier = Barrier(8)

    def thread(number: int) -> None:
        barrier.wait()
        for first in range(0, 16, 2):
            read(cache, source, (first + 2 * number) % 16, 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(thread, range(8)))
    assert source.fetched() == Counter(range(16))


def test_the_farthest_next_use_goes_first(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 8 * CHUNK)
    one, two = make("1"), make("2")
    for chunk, next_use in enumerate([50, 10, 90, 30]):
        read(cache, one, chunk, 1, next_use)
    for chunk, next_use in enumerate([80, 20, 70, 40]):
        read(cache, two, chunk, 1, next_use)
    read(cache, one, 2, 1, 15)  # used again: no longer the farthest
    read(cache, one, 8, 1, 5)
    assert (present(cache, one), present(cache, two)) == ([0, 1, 2, 3, 8], [1, 2, 3])
    read(cache, two, 8, 2, 5)
    assert (present(cache, one), present(cache, two)) == ([1, 2, 3, 8], [1, 3, 8, 9])
    assert used_bytes(cache) == 8 * CHUNK
    assert sum(path.stat().st_blocks * 512 for path in files(tmp_path)) <= 8 * CHUNK + 2 * 4096


def test_what_is_itself_the_farthest_is_not_kept(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, 4 * CHUNK), make()
    read(cache, source, 0, 4, 10)
    for _ in range(3):
        read(cache, source, 4, 2, 99)
    assert present(cache, source) == [0, 1, 2, 3]
    assert cache.requests.bytes["bypass"] == 6 * CHUNK
    read(cache, source, 6, 1, 9)
    assert 6 in present(cache, source)


def test_left_overs_of_earlier_sessions_go_first(tmp_path: Path) -> None:
    source = make()
    cache = NodeCache(tmp_path, 4 * CHUNK)
    read(cache, source, 0, 4, 10)
    os.close(cache._membership)
    later = NodeCache(tmp_path, 4 * CHUNK)
    read(later, source, 1, 1, 10**9)
    read(later, source, 8, 3, 10**9)
    assert present(later, source) == [1, 8, 9, 10]


def test_more_than_the_limit_at_once_passes_through(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, 4 * CHUNK), make()
    read(cache, source, 0, 5)
    assert present(cache, source) == []
    assert cache.requests.bytes["bypass"] == 5 * CHUNK


@pytest.mark.parametrize("refill", [False, True])
def test_a_read_that_meets_an_eviction_is_no_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refill: bool) -> None:
    """The chunk is evicted (and fetched again) between the check of its state and the end of the read."""
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 0, 2)
    file = cache._file(source.ref)
    assert file is not None
    preadv = os.preadv

    def meet(*args: Any) -> int:
        file.take_away(0, 1)
        got = preadv(*args)
        if refill:
            file.write(0, memoryview(content(source.ref, 0, 1)))
            file.mark(0, 1, 1)
        return got

    monkeypatch.setattr(os, "preadv", meet)
    buffer = memoryview(bytearray(2 * CHUNK))
    assert not file.read(0, 2, (buffer,))
    assert buffer[:CHUNK] == bytes(CHUNK), "it was a hole"


def test_states_go_before_their_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 0, 2)
    file = cache._file(source.ref)
    assert file is not None
    seen: list[object] = []
    before = file._head()
    monkeypatch.setattr(
        cache_file,
        "punch_hole",
        lambda *args: seen.append((file.states()[0], file._head() != before)),
    )
    file.take_away(0, 1)
    assert seen == [(0, True)]


def test_without_holes_whole_objects_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr(cache_file, "punch_hole", refuse)
    cache = NodeCache(tmp_path, 8 * CHUNK)
    one, two = make("1"), make("2")
    read(cache, one, 0, 4, 90)
    read(cache, two, 0, 4, 10)
    read(cache, two, 4, 1, 10)
    assert (present(cache, one), present(cache, two)) == ([], [0, 1, 2, 3, 4])
    assert used_bytes(cache) == 5 * CHUNK
    assert sum(path.stat().st_blocks * 512 for path in files(tmp_path)) <= 5 * CHUNK + 2 * 4096
    read(cache, one, 0, 3, 5)


def test_a_directory_that_cannot_be_used_passes_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    source = make()
    with caplog.at_level(logging.WARNING):
        cache = NodeCache(tmp_path / "file" / "cache", ROOMY)
        for _ in range(3):
            read(cache, source, 0, 4)
        cache.drop(source.ref, 0, 4)
    assert len(source.calls) == 3
    assert cache.requests.bytes["bypass"] == 12 * CHUNK
    assert len(caplog.records) == 1
    assert "pass through" in caplog.text


def test_a_directory_that_is_removed_meanwhile(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path / "cache", ROOMY), make()
    read(cache, source, 0, 4)
    for path in [*files(tmp_path), tmp_path / "cache" / "usage"]:
        path.unlink()
    read(cache, source, 0, 8)
    read(cache, source, 4, 8)


def test_what_a_dead_writer_left_is_counted_once_and_reclaimed(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, 4 * CHUNK), make()
    read(cache, source, 0, 3)
    file = cache._file(source.ref)
    assert file is not None
    file.mark(1, 1, RESERVED)
    read(cache, source, 1, 1)
    assert source.calls == [(0, 3), (1, 1)], "its bytes may be half written"
    assert used_bytes(cache) == 3 * CHUNK
    file.mark(0, 1, RESERVED)
    read(cache, source, 4, 2, 1)
    assert 4 in present(cache, source)
    assert file.states()[0] == 0, "evicted before anything else"


def test_the_count_is_renewed_by_whoever_is_alone(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 0, 4)
    file = cache._file(source.ref)
    assert file is not None
    file.mark(3, 1, RESERVED)
    os.pwrite(cache._membership, (10**6).to_bytes(8, "little"), 0)
    other = NodeCache(tmp_path, ROOMY)
    assert used_bytes(other) == 10**6, "not while another uses it"
    os.close(cache._membership)
    os.close(other._membership)
    assert used_bytes(NodeCache(tmp_path, ROOMY)) == 3 * CHUNK
    assert file.blocks() == file.layout.data + 3 * CHUNK


def test_who_waits_too_long_fetches_by_itself(tmp_path: Path) -> None:
    source = make()
    slow, quick = NodeCache(tmp_path, ROOMY), NodeCache(tmp_path, ROOMY, patience=0.05)
    started, finish = Event(), Event()

    def hang(first: int, count: int, buffer: memoryview) -> None:
        started.set()
        assert finish.wait(30)
        buffer[:] = content(source.ref, first, count)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(slow.read, source.ref, 0, 4, memoryview(bytearray(4 * CHUNK)), hang, 0)
        assert started.wait(30)
        read(quick, source, 2, 2)
        assert source.calls == [(2, 2)]
        finish.set()
        job.result()
    read(quick, source, 0, 4)
    assert source.calls == [(2, 2)]


def test_a_forked_child_does_not_keep_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with locked(str(path), 0, 1, 1.0) as descriptor:
        child = os.fork()
        if child == 0:
            try:
                os.fstat(descriptor)
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_chunk_is_there_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    seen: list[object] = []
    write = CacheFile.write

    def look(file: CacheFile, first: int, data: memoryview) -> None:
        seen.append((file.read(0, 2, memoryview(bytearray(2 * CHUNK))), cache._file(source.ref) is file))
        write(file, first, data)

    monkeypatch.setattr(CacheFile, "write", look)
    read(cache, source, 0, 2)
    assert seen == [(False, True)]
    assert present(cache, source) == [0, 1]


def test_what_is_being_written_is_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = NodeCache(tmp_path, 4 * CHUNK), NodeCache(tmp_path, 4 * CHUNK)
    slow, quick = make("1"), make("2")
    read(cache, slow, 8, 2, 50)
    write = CacheFile.write

    def meet(file: CacheFile, first: int, data: memoryview) -> None:
        write(file, first, data)
        monkeypatch.setattr(CacheFile, "write", write)
        read(other, quick, 0, 2, 10)

    monkeypatch.setattr(CacheFile, "write", meet)
    read(cache, slow, 0, 2, 90)
    assert (present(cache, slow), present(cache, quick)) == ([0, 1], [0, 1])
    assert used_bytes(cache) == 4 * CHUNK
    read(cache, slow, 0, 2)
