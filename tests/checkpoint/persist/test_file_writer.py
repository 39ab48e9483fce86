"""A file, written as its bytes arrive: whole, checked, and without remains after a failure."""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.checkpoint.format.layout import PAGE
from fmscale.checkpoint.format.names import SUMS
from fmscale.checkpoint.persist.file_writer import THREADS, store_stream
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.persist.rank_part import write_files
from fmscale.checkpoint.persist.step import Save
from fmscale.checkpoint.persist.stream import BLOCK_BYTES, Block, Stream
from fmscale.checkpoint.persist.worker import STEPS
from fmscale.checkpoint.snapshot.copy_progress import CopyProgress, SaveFailed
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.errors import StoreFull
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import chunk_checksums
from fmscale.store.open import open_store
from tests.checkpoint.jobs import STATE, one_save
from tests.checkpoint.jobs import settings as job_settings
from tests.checkpoint.states import take_lease

HEADER = b"h" * PAGE
Spans = Sequence[tuple[int, int]]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def paged(seed: int, size: int) -> np.ndarray:
    """Bytes that begin at a page, as a snapshot does."""
    data = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    data[:] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return data


def stored(store: Backend, key: str, data: np.ndarray, spans: Spans, pool: Executor, **how: bool) -> np.ndarray | None:
    """Store a header, in the memory's first page, and the spans."""

    def fill(stream: Stream) -> Iterator[Block]:
        for offset, size in spans:
            yield from stream.add(offset, size)
        yield from stream.close(HEADER)

    stream = Stream(data.data, 0, PAGE, PAGE + sum(size for _, size in spans))
    return store_stream(store, key, stream, fill, pool, **{"digests": True, "exact": True, **how})


def expected(data: np.ndarray, spans: Spans) -> bytes:
    return HEADER + b"".join(data[at : at + size].tobytes() for at, size in spans)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(PAGE, 40_000), st.integers(1, 30_000)), min_size=1, max_size=5))
def test_a_stream_is_its_header_and_spans_one_after_another(spans: Spans) -> None:
    data = paged(0, 70_000)
    stream = Stream(data.data, 0, PAGE, 1 << 20)
    for offset, size in spans:
        stream.add(offset, size)
    stream.close(HEADER)
    whole = expected(data, spans)
    assert bytes(stream.whole()) == whole
    scratch = memoryview(bytearray(9_000))
    parts = [
        bytes(stream.block(at, min(9_000, len(whole) - at), lambda: scratch)) for at in range(0, len(whole), 9_000)
    ]
    assert b"".join(parts) == whole


SIZES = [1, PAGE - 1, PAGE, BLOCK_BYTES - PAGE, BLOCK_BYTES, BLOCK_BYTES + PAGE, 2 * BLOCK_BYTES + 12345]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_any_size_is_written_whole_with_its_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Executor, size: int, named: bool, exact: bool
) -> None:
    if named:
        real = os.open

        def without(path: str, flags: int, *args: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(95, "Operation not supported")
            return real(path, flags, *args, **more)

        monkeypatch.setattr(os, "open", without)
    data = paged(1, PAGE + size)
    store = open_store(str(tmp_path / "store"))
    spans = [(PAGE, size // 3), (PAGE + size // 3, size - size // 3)]
    for _ in range(2):  # an earlier attempt's file is replaced
        sums = stored(store, "a/b/file", data, spans, pool, exact=exact)
    whole = expected(data, spans)
    assert store.get("a/b/file") == whole
    assert sums is not None
    assert np.array_equal(sums, chunk_checksums(whole))
    assert store.get("a/b/file" + SUMS) == sums.astype("<u4").tobytes()
    assert sorted(path.name for path in (tmp_path / "store" / "a" / "b").iterdir()) == ["file", "file" + SUMS]
    assert stored(store, "c/file", data, spans, pool, digests=False) is not None
    assert [path.name for path in (tmp_path / "store" / "c").iterdir()] == ["file"]


def test_scattered_spans_are_written_direct_too(tmp_path: Path, pool: Executor) -> None:
    data = paged(2, 3 * BLOCK_BYTES)
    spans = [(2 * PAGE, 5000), (BLOCK_BYTES + 17, BLOCK_BYTES), (5000, 3 * PAGE)]
    store = open_store(str(tmp_path / "store"))
    sums = stored(store, "file", data, spans, pool)
    assert store.get("file") == expected(data, spans)
    assert sums is not None
    assert np.array_equal(sums, chunk_checksums(expected(data, spans)))


@pytest.mark.parametrize("url", ["memory", "local"])
def test_a_file_without_tensors_is_not_stored(tmp_path: Path, memory_store: Backend, pool: Executor, url: str) -> None:
    store = memory_store if url == "memory" else open_store(str(tmp_path / "store"))
    assert stored(store, "folder/file", paged(1, PAGE), [], pool) is None
    assert list(store.list_objects("folder")) == []


@pytest.mark.parametrize("name", ["posix_fallocate", "pwrite", "fsync"])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Executor, name: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(str(tmp_path / "store"))
    monkeypatch.setattr(os, name, full)
    data = paged(1, 2 * BLOCK_BYTES)
    with pytest.raises(StoreFull):
        stored(store, "f/file", data, [(PAGE, len(data) - PAGE)], pool)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_what_is_copied_is_written_while_the_rest_is_still_being_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Executor
) -> None:
    """The copy continues only after the write of its first half has begun."""
    written = threading.Event()
    real = os.pwrite

    def write(*args: Any) -> int:
        written.set()
        return real(*args)

    monkeypatch.setattr(os, "pwrite", write)
    data = paged(3, 4 * BLOCK_BYTES)
    copied = CopyProgress(0)

    def copy() -> None:
        copied.advance(2 * BLOCK_BYTES)
        if written.wait(20):
            copied.advance(len(data))
        copied.fail("nothing was written")

    def fill(stream: Stream) -> Iterator[Block]:
        for start in range(PAGE, len(data), PAGE):
            copied.wait(start + PAGE)
            yield from stream.add(start, PAGE)
        yield from stream.close(HEADER)

    threading.Thread(target=copy).start()
    store = open_store(str(tmp_path / "store"))
    stream = Stream(data.data, 0, PAGE, len(data))
    sums = store_stream(store, "file", stream, fill, pool, digests=True, exact=True)
    whole = HEADER + data[PAGE:].tobytes()
    assert store.get("file") == whole
    assert sums is not None
    assert np.array_equal(sums, chunk_checksums(whole))


def a_save(
    url: str, settings: SaveSettings, job: SaveJob, memory: SharedMemory, copied: CopyProgress, pool: Executor
) -> Save:
    return Save(
        backend=open_store(url),
        settings=settings,
        job=job,
        memory=memory.view,
        copied=copied,
        known={},
        pool=pool,
        closing=threading.Event(),
    )


def test_a_copy_that_comes_to_no_end_leaves_nothing(tmp_path: Path, pool: Executor) -> None:
    url = str(tmp_path / "store")
    memory = SharedMemory(1 << 17)
    lease = take_lease(url)
    job = one_save(url, lease, 1, memory, 0, False)
    copied = CopyProgress(20_000)
    copied.fail("the trainer ended")
    with pytest.raises(SaveFailed, match="the trainer ended"):
        write_files(a_save(url, job_settings(url, lease), job, memory, copied, pool))
    assert list(open_store(url).list_objects(job.folder)) == []
    assert len(STATE) == 3


def test_a_part_is_durable_with_three_syncs_and_its_seal_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Executor
) -> None:
    """Syncs of data, checksums, and their folder; each costs up to milliseconds on busy cores."""
    url = str(tmp_path / "store")
    memory = SharedMemory(1 << 17)
    lease = take_lease(url)
    job = one_save(url, lease, 1, memory, 0, False)
    (tmp_path / "store" / job.folder).mkdir(parents=True)
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save = a_save(url, job_settings(url, lease), job, memory, CopyProgress(), pool)
    for step in STEPS:
        step(save)
    assert synced[-1] == str(tmp_path / "store" / job.folder)
    assert len(synced) == 3
