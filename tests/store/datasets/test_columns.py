"""Derived columns: values by position, complete or invisible, verified, and gone with their commit."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import Conflict, CorruptData, DataError, FormatError, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets import columns, columns_writer
from fmscale.store.datasets.columns import INDEX, Column, column_key, open_column
from fmscale.store.datasets.columns_writer import Layout, finish_column, finished_parts, put_part
from fmscale.store.datasets.commit import references
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.datasets.manifest import Manifest
from fmscale.store.datasets.manifest_writer import encode_manifest
from fmscale.store.datasets.verify import size_of, verify_dataset
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.log.retirement import collect_garbage, retire
from fmscale.store.open import open_store
from fmscale.store.segments.seal import SealInfo
from tests.helpers.faulty_backend import Crash, Fault, FaultyBackend
from tests.helpers.segments import documents, flip, truncate, write_commit

LAYOUT = Layout("size", "made by a test", "uint32")
COUNTS = [3, 9000, 1, 40]


@pytest.fixture
def dataset(store: Backend) -> Dataset:
    return commit(store)


def commit(store: Backend, counts: list[int] = COUNTS, name: str = "d") -> Dataset:
    """A dataset of a commit with so many documents in its segments."""
    write_commit(store, name, {"train": [documents([1] * count, seed=seed) for seed, count in enumerate(counts)]})
    return open_dataset(store, name)


def numbers(counts: list[int] = COUNTS, dtype: str = "uint32", shape: tuple[int, ...] = ()) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, 200, (count, *shape)).astype(dtype) for count in counts]


def manifest_of(counts: list[int]) -> Manifest:
    """A manifest of segments with so many documents."""
    rows = [
        (unit, SealInfo(digest="0" * 32, kind="records", split="s", dtype="", tokens=0, documents=count, bytes=1))
        for unit, count in enumerate(counts)
    ]
    digest, _, data = encode_manifest(rows, kind="records", split="s", dtype="", job="j", folder="f")
    return Manifest(pa.py_buffer(data), digest, "a manifest")


def folder(dataset: Dataset, layout: Layout = LAYOUT) -> str:
    manifest = dataset.commits()[0].manifests["train"]
    return column_key(dataset.name, manifest.digest, layout.name, layout.maker)


def make(dataset: Dataset, values: list[np.ndarray], layout: Layout = LAYOUT, store: Any = None) -> Column:
    """The job: parts that are not there, then the column."""
    store, key = store or dataset.backend, folder(dataset, layout)
    for segment in sorted(set(range(len(values))) - finished_parts(store, key)):
        put_part(store, key, segment, values[segment], note=f"note {segment}" if segment % 2 else "")
    return finish_column(store, key, layout, dataset.commits()[0].manifests["train"])


def test_a_column_is_there_when_it_is_finished(dataset: Dataset) -> None:
    store, key, values = dataset.backend, folder(dataset), numbers()
    values[1][[5, 8999]] = 0, 1000
    assert open_column(store, key) is None
    put_part(store, key, 2, values[2])
    assert finished_parts(store, key) == {2}
    with pytest.raises(DataError, match="lacks the values of 3 segments"):
        finish_column(store, key, LAYOUT, dataset.commits()[0].manifests["train"])
    assert open_column(store, key) is None
    assert verify_dataset(store, dataset) == []
    made = make(dataset, values)
    column = open_column(store, key)
    assert column is not None
    assert (column.name, column.records, column.shape, column.dtype) == ("size", 9044, (), np.dtype("<u4"))
    assert column.notes() == made.notes() == {1: "note 1", 3: "note 3"}
    everything = np.concatenate(values)
    positions = np.array([9043, 0, 4100, 4099, 2, 3, 9003, 0], dtype=np.uint64)
    np.testing.assert_array_equal(column.take(positions), everything[positions])
    np.testing.assert_array_equal(column.take(np.arange(9044, dtype=np.uint64)), everything)
    assert column.outside(1, 999).tolist() == [8, 9002]
    with pytest.raises(DataError, match="outside the column"):
        column.take(np.array([9044], dtype=np.uint64))
    checked: list[int] = []
    assert verify_dataset(store, dataset, progress=checked.append) == []
    assert sum(checked) == size_of(dataset, dataset.commits())
    assert sum(part.nbytes for part in values) == size_of(dataset, dataset.commits()) - sum(
        manifest["bytes"] + manifest["object"]["bytes"] for manifest in dataset.commits()[0].body["manifests"].values()
    )


CASES = st.tuples(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.sampled_from(["uint8", "uint32", "int64", "float16", "float32", "float64"]),
    st.sampled_from([(), (3,), (2, 5)]),
    st.integers(1, 100),
    st.integers(0, 400),
    st.integers(0, 2**32),
)


@settings(max_examples=60)
@given(case=CASES)
def test_values_are_taken_at_any_positions(case: tuple[Any, ...]) -> None:
    counts, dtype, shape, chunk_bytes, memory_bytes, seed = case
    store, values = open_store(f"memory://{uuid.uuid4().hex}"), numbers(counts, dtype, shape)
    layout = Layout("column", "maker", dtype, shape)
    manifest = manifest_of(counts)
    key = column_key("d", manifest.digest, layout.name, layout.maker)
    for segment, part in enumerate(values):
        put_part(store, key, segment, part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_writer, "CHUNK_BYTES", chunk_bytes)
        finish_column(store, key, layout, manifest)
    column = open_column(store, key, memory_bytes)
    assert column is not None
    rng = np.random.default_rng(seed)
    everything = np.concatenate(values)
    for size in (0, 1, 7, 100):
        positions = rng.integers(0, len(everything), size, dtype=np.uint64)
        taken = column.take(positions)
        assert taken.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(taken, everything[positions])
    if shape:
        with pytest.raises(DataError, match="not numbers"):
            column.outside(0, 1)
    else:
        low, high = sorted(rng.integers(-5, 210, 2).tolist())
        np.testing.assert_array_equal(
            column.outside(low, high), np.flatnonzero((everything < low) | (everything > high))
        )


def test_only_parts_with_such_a_number_are_read(memory_store: Backend) -> None:
    dataset = commit(memory_store)
    values = numbers()
    values[3][7] = 500
    make(dataset, values)
    faulty = FaultyBackend(memory_store)
    column = open_column(faulty, folder(dataset))
    assert column is not None
    assert column.outside(1, 2**40).tolist() == []
    assert column.outside(1, 400).tolist() == [9011]
    assert [call.key[-12:] for call in faulty.calls if call.method == "read_into"] == ["00000003.bin"]


def test_chunks_are_read_once_while_they_fit(memory_store: Backend) -> None:
    dataset = commit(memory_store)
    make(dataset, numbers())
    faulty = FaultyBackend(memory_store)
    roomy, narrow = (open_column(faulty, folder(dataset), size) for size in (2**20, 0))
    faulty.calls.clear()
    ends = np.array([3, 9002], dtype=np.uint64)  # the first and the last of a part's three chunks
    for column, reads in ((roomy, 2), (narrow, 6)):
        assert column is not None
        for end in (*ends, *ends, *ends):
            column.take(end[np.newaxis])
        assert len(faulty.calls) == reads
        faulty.calls.clear()


def test_threads_share_a_column(local_store: Backend) -> None:
    dataset = commit(local_store)
    everything = np.concatenate(numbers())
    make(dataset, numbers())
    column = open_column(local_store, folder(dataset), 40_000)
    assert column is not None

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        positions = [rng.integers(0, 9044, 50, dtype=np.uint64) for _ in range(50)]
        return all((column.take(some) == everything[some]).all() for some in positions)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(draw, range(8)))


def test_writers_of_one_part_agree_or_conflict(dataset: Dataset) -> None:
    store, key, values = dataset.backend, folder(dataset), numbers()
    for _ in range(2):
        put_part(store, key, 1, values[1], note="the first stays")
    put_part(store, key, 1, values[1], note="another text of the same error")
    with pytest.raises(Conflict, match=r"00000001\.bin has other values"):
        put_part(store, key, 1, values[1] + np.uint32(1))
    assert make(dataset, values).notes()[1] == "the first stays"
    assert make(dataset, values).records == 9044


@pytest.mark.parametrize(
    "fault", [pytest.param(Fault.CRASH_BEFORE, marks=pytest.mark.slow), Fault.CRASH_AFTER, Fault.LOST]
)
def test_a_stop_at_any_call_leaves_no_column_and_goes_on(memory_store: Backend, fault: Fault) -> None:
    stops = 0
    while True:
        dataset = commit(memory_store, [2, 3], f"d{stops}")
        faulty = FaultyBackend(memory_store, {stops: fault})
        values = numbers([2, 3])
        with suppress(Crash, StoreUnavailable):
            make(dataset, values, store=faulty)
        seen = open_column(memory_store, folder(dataset))
        assert seen is None or (seen.take(np.arange(5, dtype=np.uint64)) == np.concatenate(values)).all()
        column = make(dataset, values)
        assert (column.take(np.arange(5, dtype=np.uint64)) == np.concatenate(values)).all()
        if len(faulty.calls) <= stops:
            break
        stops += 1
    assert stops >= 8


def test_damage_of_each_object_is_named_and_refused(memory_store: Backend) -> None:
    dataset = commit(memory_store)
    make(dataset, numbers())
    sound_keys = [info.key for info in memory_store.list_objects(folder(dataset)) if not info.key.endswith(".note")]
    assert len(sound_keys) == 5

    def named() -> set[str]:
        return {problem.key for problem in verify_dataset(memory_store, dataset)}

    def refused() -> bool:
        try:
            column = open_column(memory_store, folder(dataset))
            assert column is not None
            column.take(np.arange(9044, dtype=np.uint64))
        except (CorruptData, FormatError, OSError) as error:
            return "columns" in str(error)
        return False

    for key in sound_keys:
        sound = memory_store.get(key)
        for offset in {0, len(sound) // 3, len(sound) // 2, len(sound) - 1}:
            flip(memory_store, key, offset)
            assert named() == {key}
            assert refused()
            memory_store.put(key, sound)
        truncate(memory_store, key, len(sound) - 1)
        assert named() == {key}
        assert refused()
        memory_store.put(key, sound + b"x")
        assert named() == {key}
        memory_store.put(key, sound)
    flip(memory_store, f"{folder(dataset)}/00000001.bin", 4 * 5000)
    assert [problem.chunk for problem in verify_dataset(memory_store, dataset)] == [1]
    column = open_column(memory_store, folder(dataset))
    assert column is not None
    assert len(column.take(np.arange(4000, dtype=np.uint64))) == 4000  # the damage lies in another chunk
    with pytest.raises(CorruptData, match="derive the column again"):
        column.part(1)


def test_a_missing_part_is_named_and_a_missing_last_object_hides_the_column(memory_store: Backend) -> None:
    dataset = commit(memory_store)
    make(dataset, numbers())
    memory_store.delete(f"{folder(dataset)}/00000002.bin")
    assert [(p.key[-12:], p.what) for p in verify_dataset(memory_store, dataset)] == [("00000002.bin", "missing")]
    memory_store.delete(f"{folder(dataset)}/{INDEX}")
    assert open_column(memory_store, folder(dataset)) is None
    assert verify_dataset(memory_store, dataset) == []
    assert make(dataset, numbers()).records == 9044


def test_a_column_in_another_place_or_of_a_later_version_is_refused(
    memory_store: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = commit(memory_store)
    make(dataset, numbers())
    other = Layout("size", "another maker", "uint32")
    memory_store.put(f"{folder(dataset, other)}/{INDEX}", memory_store.get(f"{folder(dataset)}/{INDEX}"))
    with pytest.raises(CorruptData, match="column"):
        open_column(memory_store, folder(dataset, other))
    memory_store.delete(f"{folder(dataset, other)}/{INDEX}")
    monkeypatch.setattr(columns_writer, "FORMAT_VERSION", columns.FORMAT_VERSION + 1)
    with pytest.raises(FormatError, match="format_version"):
        make(dataset, numbers(), other)
    with pytest.raises(DataError, match="cannot have this name"):
        column_key("d", metadata_digest(b"m"), "a/b", "maker")


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_values": 0},
        {"chunk_values": 7},
        {"chunk_values": "1"},
        {"dtype": "none"},
        {"shape": [0]},
        {"maker": None},
    ],
)
def test_a_last_object_that_no_job_writes(memory_store: Backend, change: dict[str, Any]) -> None:
    """Wrong content under a right digest."""
    dataset = commit(memory_store)
    make(dataset, numbers())
    key = f"{folder(dataset)}/{INDEX}"
    table = pa.ipc.open_stream(memory_store.get(key)[: -columns.DIGEST_DIGITS]).read_all()
    header = {**json.loads(table.schema.metadata[columns.HEADER_KEY]), **change}
    for changed in (
        table.replace_schema_metadata({columns.HEADER_KEY: canonical_json({k: v for k, v in header.items() if v})}),
        table.drop_columns(["records"]),
        table.slice(0, 2),
    ):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, changed.schema) as writer:
            writer.write_table(changed)
        stream = bytes(sink.getvalue())
        memory_store.put(key, stream + metadata_digest(stream).encode())
        if changed.num_rows == table.num_rows:
            with pytest.raises(CorruptData, match="is damaged"):
                open_column(memory_store, folder(dataset))
        assert {problem.key for problem in verify_dataset(memory_store, dataset)} == {key}


def test_a_part_of_another_size_is_refused(memory_store: Backend) -> None:
    dataset = commit(memory_store)
    with pytest.raises(CorruptData, match="not the size"):
        make(dataset, [*numbers()[:3], numbers()[0]])
    assert open_column(memory_store, folder(dataset)) is None


def test_a_retired_commit_takes_its_columns_along(dataset: Dataset) -> None:
    store = dataset.backend
    make(dataset, numbers())
    write_commit(store, "d", {"train": [documents([9], seed=4)]}, job="second")
    second = dataset.commits()[1].manifests["train"]
    kept = column_key("d", second.digest, *LAYOUT[:2])
    put_part(store, kept, 0, numbers([1])[0])
    finish_column(store, kept, LAYOUT, second)
    retire(dataset.log, [0], lambda entry: references("d", entry.body))
    collect_garbage(dataset.log, lambda entry: references("d", entry.body), grace=0)
    left = {info.key for info in store.list_objects("datasets/d/columns")}
    assert left == {f"{kept}/00000000.bin", f"{kept}/{INDEX}"}
    assert verify_dataset(store, dataset) == []
