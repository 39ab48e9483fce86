import itertools
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import Conflict, CorruptData, DataError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import crc32c, data_digest
from fmscale.store.open import open_store
from fmscale.store.segments.handle import read_chunks, read_document_table, read_rows
from fmscale.store.segments.records import (
    FILE_SHIFT,
    RecordSegment,
    open_record_segment,
    read_records,
    storable,
)
from fmscale.store.segments.records_version_1 import open_records
from fmscale.store.segments.records_writer import BATCH_BYTES, RecordSegmentWriter
from fmscale.store.segments.seal import sealed
from fmscale.store.segments.tokens import open_segment
from tests.helpers.records import record_id, write_and_open, write_records
from tests.helpers.segments import documents, flip, truncate, write_segment

PREFIX = "datasets/d/segments/job/00000000-train"
SCHEMA = pa.schema([("image", pa.binary()), ("text", pa.string()), ("label", pa.list_(pa.int32()))])


def table(sizes: list[int], seed: int = 0) -> pa.Table:
    """Records with images of these sizes."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "image": [rng.bytes(size) for size in sizes],
            "text": [None if i % 7 == 0 else f"text {i}" for i in range(len(sizes))],
            "label": pa.array([list(range(i % 4)) for i in range(len(sizes))], pa.list_(pa.int32())),
        },
        schema=SCHEMA,
    )


def index(store: Backend, segment: RecordSegment) -> np.ndarray:
    return read_rows(store, segment, "batches", 0, segment.arrays["batches"].layout.rows)


def test_any_run_of_records_comes_back(store: Backend) -> None:
    data = table([300] * 400 + [90_000, 0, 20_000] + [5] * 400)
    segment = write_and_open(store, PREFIX, data, file_bytes=100_000)
    assert segment.schema.equals(SCHEMA)
    assert (segment.documents, len(segment.files)) == (803, 3)
    for first, count in ((0, 803), (0, 0), (803, 0), (17, 1), (399, 3), (400, 1), (350, 100), (802, 1)):
        assert read_records(store, segment, first, count).equals(data.slice(first, count)), (first, count)
    for first, count in ((-1, 1), (803, 1), (0, 804), (5, -1), (-1, 0)):
        with pytest.raises(DataError, match="Records outside"):
            read_records(store, segment, first, count)


def test_records_are_documents_of_one_token(memory_store: Backend) -> None:
    segment = write_and_open(memory_store, PREFIX, table([10] * 50))
    found = read_document_table(memory_store, segment).to_pydict()
    assert found["id"] == [record_id(i) for i in range(50)]
    assert found["source"] == [f"{i % 2}.parquet" for i in range(50)]
    assert (found["start"], found["stop"]) == (list(range(50)), list(range(1, 51)))
    assert found["tokens"] == [1] * 50
    ids = read_rows(memory_store, segment, "document_ids", 7, 3)
    assert [row.tobytes() for row in ids] == [record_id(i) for i in (7, 8, 9)]


def test_any_reader_of_arrow_and_zarr_opens_the_files(local_store: Backend) -> None:
    data = table([9000] * 100)
    segment = write_and_open(local_store, PREFIX, data, file_bytes=200_000)
    paths = [local_store.local_path(f"{PREFIX}/{file.key}") for file in segment.files]
    assert len(paths) > 3
    parts = [pa.ipc.open_file(str(path)).read_all() for path in paths]
    assert pa.concat_tables(parts).equals(data)
    group = zarr.open_group(str(local_store.local_path(PREFIX)), mode="r")
    batches: Any = group["batches"]
    assert batches[:].tolist() == index(local_store, segment).tolist()
    assert group.attrs["fmscale"] == {"format_version": 2, "kind": "records"}


def test_the_index_has_the_place_of_each_message_and_its_chunks_their_first_record(memory_store: Backend) -> None:
    segment = write_and_open(memory_store, PREFIX, table([100] * 3000), batch_bytes=800, file_bytes=300_000)
    rows = index(memory_store, segment)
    layout = segment.arrays["batches"].layout
    assert layout.chunk_bytes == 4080
    assert segment.first_record.tolist() == rows[:: layout.inner, 2].tolist()
    assert len(segment.first_record) > 2
    for place, size, _ in rows.tolist():
        file = segment.files[place >> FILE_SHIFT]
        offset = place & ((1 << FILE_SHIFT) - 1)
        assert memory_store.get(f"{PREFIX}/{file.key}")[offset : offset + 4] == b"\xff\xff\xff\xff"
        assert offset + size <= file.bytes
    for number, file in enumerate(segment.files):
        ref, content = segment.file(number), memory_store.get(f"{PREFIX}/{file.key}")
        assert (ref.bytes, ref.digest, ref.chunk_bytes) == (len(content), data_digest(content), 4096)
        assert ref.crc32c.tolist() == [crc32c(content[at : at + 4096]) for at in range(0, len(content), 4096)]
        assert segment.file(number) is ref


def test_a_read_of_a_few_records_reads_a_part_of_the_index(memory_store: Backend) -> None:
    segment = write_and_open(memory_store, PREFIX, table([100] * 3000), batch_bytes=800)
    before = memory_store.requests.bytes.get("get_range", 0)
    read_records(memory_store, segment, 1500, 2)
    assert memory_store.requests.bytes["get_range"] - before in (4080 + 4096, 4080 + 8192)


def test_a_unit_costs_a_tenth_more_than_its_bytes(memory_store: Backend) -> None:
    rng = np.random.default_rng(1)
    data = table(rng.lognormal(7.5, 1.0, 6000).astype(int).tolist())
    segment = write_and_open(memory_store, PREFIX, data, rows=500)
    whole = data.combine_chunks().to_batches()[0]
    ends = np.cumsum([pa.ipc.get_record_batch_size(whole.slice(i, 1)) for i in range(6000)])
    wanted = read = 0
    for first in rng.integers(0, 5600, 200).tolist():
        count = int(ends.searchsorted(ends[first] + 300_000)) - first
        wanted += pa.ipc.get_record_batch_size(whole.slice(first, count))
        before = memory_store.requests.bytes.get("get_range", 0)
        read_records(memory_store, segment, first, count)
        read += memory_store.requests.bytes["get_range"] - before
    assert read <= 1.1 * wanted


@pytest.mark.parametrize("rows", [1, 13, 5000])
def test_batches_are_as_long_as_fits_however_records_come(memory_store: Backend, rows: int) -> None:
    sizes = np.random.default_rng(0).choice([0, 10, 300, 5000, 16_000, 16_384, 40_000, 70_000], 500).tolist()
    data = table(sizes)
    segment = write_and_open(memory_store, PREFIX, data, rows=rows)
    firsts = [*index(memory_store, segment)[:, 2].tolist(), 500]
    whole = data.combine_chunks().to_batches()[0]
    for first, stop in itertools.pairwise(firsts):
        assert stop == first + 1 or pa.ipc.get_record_batch_size(whole.slice(first, stop - first)) <= BATCH_BYTES
        if stop < 500:
            assert pa.ipc.get_record_batch_size(whole.slice(first, stop + 1 - first)) > BATCH_BYTES
    assert read_records(memory_store, segment, 0, 500).equals(data)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [([], 0), ([0], 1), ([6_000_000], 1), ([6_000_000, 10, 10, 6_000_000, 10], 4), ([10, 3_000_000], 2)],
)
def test_records_of_any_size(memory_store: Backend, sizes: list[int], batches: int) -> None:
    data = table(sizes)
    segment = write_and_open(memory_store, PREFIX, data, rows=100)
    assert segment.arrays["batches"].layout.rows == batches
    assert read_records(memory_store, segment, 0, len(sizes)).equals(data)


def test_damage_is_named_with_its_chunk(memory_store: Backend) -> None:
    segment = write_and_open(memory_store, PREFIX, table([9000] * 20))
    key = segment.file(0).key
    for at in (4096 * 3, 4096 * 4 - 1):
        flip(memory_store, key, at)
        read_records(memory_store, segment, 5, 15)
        with pytest.raises(CorruptData, match=f"Chunk 3 of {key}"):
            read_records(memory_store, segment, 0, 3)
        flip(memory_store, key, at)
    for name in ("batches", "document_ids"):
        flip(memory_store, segment.array_shard(name, 0).key, 9)
    with pytest.raises(CorruptData, match=r"Chunk 0 of .*/batches/c/0/0"):
        read_records(memory_store, segment, 5, 1)
    with pytest.raises(CorruptData, match=r"Chunk 0 of .*/document_ids/c/0/0"):
        read_rows(memory_store, segment, "document_ids", 0, 1)
    truncate(memory_store, key, 10)
    with pytest.raises(CorruptData, match=key):
        read_chunks(memory_store, segment.file(0), 0, 1)


@pytest.mark.parametrize("name", ["seal.json", "checksums.arrow"])
def test_damaged_metadata_is_refused(memory_store: Backend, name: str) -> None:
    write_records(memory_store, PREFIX, table([90] * 20))
    digest = sealed(memory_store, PREFIX).digest  # type: ignore[union-attr]
    for offset in range(0, memory_store.head(f"{PREFIX}/{name}").bytes, 13):
        flip(memory_store, f"{PREFIX}/{name}", offset)
        with pytest.raises(CorruptData, match=name):
            open_record_segment(memory_store, PREFIX, digest)
        flip(memory_store, f"{PREFIX}/{name}", offset)


def test_finishing_again(memory_store: Backend, tmp_path: Path) -> None:
    seal = write_records(memory_store, PREFIX, table([90] * 20), scratch=tmp_path)
    assert (seal.kind, seal.documents, seal.tokens, seal.dtype) == ("records", 20, 0, "")
    assert seal.bytes == sum(info.bytes for info in memory_store.list_objects(PREFIX))
    write_records(memory_store, PREFIX, table([90] * 20), scratch=tmp_path)
    with pytest.raises(Conflict):
        write_records(memory_store, PREFIX, table([91] * 20), scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_records_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for kind in (pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string_view())):
        with pytest.raises(DataError, match="a batch must be readable alone"):
            RecordSegmentWriter(tmp_path, schema=pa.schema([("a", kind)]), split="train")
    batch = table([1]).to_batches()[0]
    with RecordSegmentWriter(tmp_path, schema=SCHEMA, split="train") as writer:
        with pytest.raises(DataError, match="another schema"):
            writer.add(pa.record_batch({"a": [1]}), [bytes(16)], ["a"], [0], [1])
        with pytest.raises(DataError, match="an id, a source and a span"):
            writer.add(batch, [bytes(16)], ["a"], [0], [1, 2])
        with pytest.raises(DataError, match="not 16 bytes"):
            writer.add(batch, [bytes(15)], ["a"], [0], [1])
    assert list(tmp_path.iterdir()) == []


def test_segments_of_another_kind_or_version_are_refused(memory_store: Backend) -> None:
    tokens = write_segment(memory_store, PREFIX, documents([5]))
    records = write_records(memory_store, "r", table([5]))
    with pytest.raises(FormatError, match="not a segment of records"):
        open_record_segment(memory_store, PREFIX, tokens.digest)
    with pytest.raises(FormatError, match="not a segment of tokens"):
        open_segment(memory_store, "r", records.digest)
    with pytest.raises(FormatError, match="another version"):
        open_records(memory_store, "r", records.digest)


def test_a_handle_says_its_memory(memory_store: Backend) -> None:
    digest = write_records(memory_store, PREFIX, table([3000] * 5000), rows=500).digest
    open_record_segment(memory_store, PREFIX, digest)
    tracemalloc.start()
    segment = open_record_segment(memory_store, PREFIX, digest)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= segment.bytes_held <= 1.3 * held


TYPES = st.recursive(
    st.sampled_from(
        [
            pa.int8(),
            pa.float32(),
            pa.bool_(),
            pa.string(),
            pa.large_binary(),
            pa.binary(3),
            pa.null(),
            pa.timestamp("us"),
        ]
    ),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda kind: pa.list_(kind, 2)),
        inner.map(lambda kind: pa.struct([("a", kind), ("b", pa.int64())])),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
    ),
    max_leaves=3,
)


@given(kinds=st.lists(TYPES, min_size=1, max_size=3), data=st.data())
@settings(max_examples=25, deadline=None)
def test_all_types_come_back(kinds: list[pa.DataType], data: st.DataObject) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    count = data.draw(st.integers(1, 60))
    seed = data.draw(st.integers(0, 2**32))
    columns = {f"c{i}": values(kind, count, np.random.default_rng(seed + i)) for i, kind in enumerate(kinds)}
    written = pa.table(columns)
    rows, batch_bytes = data.draw(st.integers(1, 60)), data.draw(st.integers(200, 3000))
    segment = write_and_open(store, PREFIX, written, rows=rows, batch_bytes=batch_bytes)
    first = data.draw(st.integers(0, count))
    assert all(storable(kind) == kind for kind in kinds)
    assert read_records(store, segment, first, count - first).equals(written.slice(first))


def values(kind: pa.DataType, count: int, rng: np.random.Generator) -> pa.Array:
    """Random values of a type, a fifth of them null."""

    def one(kind: pa.DataType) -> object:
        if rng.random() < 0.2 or pa.types.is_null(kind):
            return None
        if pa.types.is_struct(kind):
            return {kind.field(i).name: one(kind.field(i).type) for i in range(kind.num_fields)}
        if pa.types.is_map(kind):
            return [(str(i), one(kind.item_type)) for i in range(int(rng.integers(3)))]
        if pa.types.is_nested(kind):
            size = kind.list_size if pa.types.is_fixed_size_list(kind) else int(rng.integers(4))
            return [one(kind.value_type) for _ in range(size)]
        if pa.types.is_string(kind):
            return "é" * int(rng.integers(40))
        if pa.types.is_fixed_size_binary(kind):
            return rng.bytes(3)
        if pa.types.is_boolean(kind):
            return rng.random() < 0.5
        return rng.bytes(int(rng.integers(50))) if pa.types.is_large_binary(kind) else int(rng.integers(100))

    return pa.array([one(kind) for _ in range(count)], kind)
