from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fmscale.errors import Conflict, CorruptData, DataError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.records import RecordSegment, open_records, read_batch
from fmscale.store.segments.records_writer import RecordSegmentWriter
from fmscale.store.segments.seal import sealed
from fmscale.store.segments.tokens import open_segment
from tests.helpers.segments import documents, flip, truncate, write_segment

PREFIX = "datasets/d/segments/job/00000000-train"
SCHEMA = pa.schema(
    [("id", pa.binary(16)), ("image", pa.binary()), ("text", pa.string()), ("label", pa.list_(pa.int32()))]
)


def table(sizes: list[int], seed: int = 0) -> pa.Table:
    """Records with images of these sizes."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "id": pa.array([rng.bytes(16) for _ in sizes], pa.binary(16)),
            "image": [rng.bytes(size) for size in sizes],
            "text": [None if i % 7 == 0 else f"text {i}" for i in range(len(sizes))],
            "label": pa.array([list(range(i % 4)) for i in range(len(sizes))], pa.list_(pa.int32())),
        },
        schema=SCHEMA,
    )


def write(
    store: Backend, scratch: Path, data: pa.Table, rows: int = 7, prefix: str = PREFIX, **sizes: int
) -> RecordSegment:
    with RecordSegmentWriter(scratch, schema=SCHEMA, split="train", **sizes) as writer:
        for batch in data.to_batches(max_chunksize=rows):
            writer.add(batch)
        seal = writer.finish(store, prefix)
    assert (seal.kind, seal.documents, seal.tokens) == ("records", data.num_rows, 0)
    assert seal.bytes == sum(info.bytes for info in store.list_objects(prefix))
    return open_records(store, prefix, seal.digest)


def read_all(store: Backend, segment: RecordSegment) -> pa.Table:
    batches = [read_batch(store, segment, i) for i in range(segment.batches)]
    return pa.Table.from_batches(batches, schema=segment.schema)


def test_batches_come_back_verified_one_read_each(store: Backend, tmp_path: Path) -> None:
    data = table([9000] * 100)
    segment = write(store, tmp_path, data, batch_bytes=50_000, file_bytes=200_000)
    assert segment.schema.equals(SCHEMA)
    assert (segment.records, len(segment.files)) == (100, 4)
    before = store.requests.count.get("get_range", 0)
    assert read_all(store, segment).equals(data)
    assert store.requests.count.get("get_range", 0) - before == segment.batches
    for record in (0, 5, 6, 50, 99):
        batch, row = segment.locate(record)
        assert read_batch(store, segment, batch).slice(row, 1).to_pylist() == data.slice(record, 1).to_pylist()
    for record in (-1, 100):
        with pytest.raises(DataError, match="no such record"):
            segment.locate(record)
    with pytest.raises(DataError, match="no such batch"):
        read_batch(store, segment, segment.batches)


def test_any_arrow_reader_opens_the_files(local_store: Backend, tmp_path: Path) -> None:
    data = table([9000] * 100)
    segment = write(local_store, tmp_path, data, batch_bytes=50_000, file_bytes=200_000)
    paths = [local_store.local_path(f"{PREFIX}/{file.key}") for file in segment.files]
    parts = [pa.ipc.open_file(str(path)).read_all() for path in paths]
    assert pa.concat_tables(parts).equals(data)


def test_batches_are_of_1_to_4_mib(memory_store: Backend, tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(0, 300_000, 80).tolist()
    segment = write(memory_store, tmp_path, table(sizes), rows=11)
    lengths = segment.index["bytes"].tolist()
    assert all(2**20 <= length <= 2**22 + 10_000 for length in lengths[:-1])
    assert sum(segment.index["bytes"]) >= sum(sizes)
    skewed = write(memory_store, tmp_path, table([10] * 50 + [1_500_000] * 4), rows=100, prefix="skewed")
    assert max(skewed.index["bytes"]) <= 2**22


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [([], 0), ([0], 1), ([6_000_000], 1), ([6_000_000, 10, 6_000_000, 10], 4), ([3_000_000, 3_000_000], 2)],
)
def test_records_of_any_size(memory_store: Backend, tmp_path: Path, sizes: list[int], batches: int) -> None:
    data = table(sizes)
    segment = write(memory_store, tmp_path, data, rows=100)
    assert segment.batches == batches
    assert read_all(memory_store, segment).equals(data)


def test_damage_is_named_with_its_batch(memory_store: Backend, tmp_path: Path) -> None:
    segment = write(memory_store, tmp_path, table([9000] * 20), batch_bytes=50_000)
    key, offset, size = segment.batch_range(1)
    for at in (offset, offset + size // 2, offset + size - 1):
        flip(memory_store, key, at)
        read_batch(memory_store, segment, 0)
        with pytest.raises(CorruptData, match=f"Batch 1 of {key}"):
            read_batch(memory_store, segment, 1)
        flip(memory_store, key, at)
    truncate(memory_store, key, offset + 10)
    with pytest.raises(CorruptData, match=key):
        read_batch(memory_store, segment, 1)


@pytest.mark.parametrize("name", ["seal.json", "checksums.arrow"])
def test_damaged_metadata_is_refused(memory_store: Backend, tmp_path: Path, name: str) -> None:
    write(memory_store, tmp_path, table([90] * 20))
    digest = sealed(memory_store, PREFIX).digest  # type: ignore[union-attr]
    for offset in range(0, memory_store.head(f"{PREFIX}/{name}").bytes, 13):
        flip(memory_store, f"{PREFIX}/{name}", offset)
        with pytest.raises(CorruptData, match=name):
            open_records(memory_store, PREFIX, digest)
        flip(memory_store, f"{PREFIX}/{name}", offset)


def test_finishing_again(memory_store: Backend, tmp_path: Path) -> None:
    write(memory_store, tmp_path, table([90] * 20))
    write(memory_store, tmp_path, table([90] * 20))
    with pytest.raises(Conflict):
        write(memory_store, tmp_path, table([91] * 20))
    assert list(tmp_path.iterdir()) == []


def test_records_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.dictionary(pa.int32(), pa.string()))])
    with pytest.raises(DataError, match="Dictionary columns"):
        RecordSegmentWriter(tmp_path, schema=schema, split="train")
    writer = RecordSegmentWriter(tmp_path, schema=SCHEMA, split="train")
    with writer, pytest.raises(DataError, match="another schema"):
        writer.add(pa.record_batch({"a": [1]}))
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_not_records(memory_store: Backend) -> None:
    seal = write_segment(memory_store, PREFIX, documents([5]))
    with pytest.raises(FormatError, match="not a segment of records"):
        open_records(memory_store, PREFIX, seal.digest)
    with pytest.raises(CorruptData):
        open_segment(memory_store, PREFIX, "0" * 32)
