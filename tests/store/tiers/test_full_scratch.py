"""A scratch directory that becomes full: an error with a remedy, no partial object, no remaining files."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fmscale.errors import StoreFull
from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.records_writer import RecordSegmentWriter
from fmscale.store.segments.tokens_writer import TokenSegmentWriter
from tests.helpers.disks import mounted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for 2 MiB."""
    with mounted(tmp_path / "small", "2m") as path:
        yield path


def many_tokens(scratch: Path, store: Backend) -> None:
    with TokenSegmentWriter(scratch, dtype="uint16", split="train") as writer:
        for _ in range(200):
            writer.add(np.zeros(10_000, np.uint16), bytes(16), "a", 0, 1)
        writer.finish(store, "p")


def many_documents(scratch: Path, store: Backend) -> None:
    with TokenSegmentWriter(scratch, dtype="uint16", split="train") as writer:
        for i in range(100_000):
            writer.add(np.zeros(0, np.uint16), bytes(16), f"source-{i}", 0, 1)
        writer.finish(store, "p")


def the_last_files(scratch: Path, store: Backend) -> None:
    with TokenSegmentWriter(scratch, dtype="uint16", split="train") as writer:
        writer.add(np.zeros(10, np.uint16), bytes(16), "a", 0, 1)
        fill = os.statvfs(scratch)
        (scratch / "fill").write_bytes(bytes(fill.f_bavail * fill.f_bsize))
        try:
            writer.finish(store, "p")
        finally:
            (scratch / "fill").unlink()


def many_records(scratch: Path, store: Backend, size: int = 30_000) -> None:
    schema = pa.schema([("data", pa.binary())])
    with RecordSegmentWriter(scratch, schema=schema, split="train", batch_bytes=3 * size) as writer:
        for i in range(6_000_000 // size):
            batch = pa.record_batch([pa.array([bytes([i % 256]) * size])], schema=schema)
            writer.add(batch, [bytes(16)], ["a"], [i], [i + 1])
        writer.finish(store, "p")


def small_records(scratch: Path, store: Backend) -> None:
    """The bytes that the disk has no room for wait in a buffer, which is written when the file is closed."""
    many_records(scratch, store, 3000)


@pytest.mark.parametrize("work", [many_tokens, many_documents, the_last_files, many_records, small_records])
def test_full(small_disk: Path, memory_store: Backend, work: Callable[[Path, Backend], None]) -> None:
    with pytest.raises(StoreFull, match="No space left") as caught:
        work(small_disk, memory_store)
    assert str(small_disk) in str(caught.value.found)
    assert "another scratch directory" in caught.value.remedy
    assert list(small_disk.iterdir()) == []
    assert [info.key for info in memory_store.list_objects("")] == []
