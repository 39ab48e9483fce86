"""Arrays are Zarr's to the byte; zarr-python is the oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import DataError
from fmscale.store.digest import chunk_checksums, data_digest
from fmscale.store.segments.array import ABSENT, ArraySpec
from fmscale.store.segments.array_writer import ArrayWriter

CHUNK = 512
SHARD = 4 * CHUNK

# dtype, other axes, rows in an inner chunk
KINDS = [
    ("uint16", (), 256),
    ("uint32", (), 128),
    ("uint64", (), 64),
    ("uint64", (2,), 32),
    ("uint8", (), 512),
]


def lengths(inner: int) -> list[int]:
    shard = inner * SHARD // CHUNK
    return [0, 1, inner - 1, inner, inner + 1, shard - 1, shard, shard + 1, 3 * shard + inner + 5]


CASES = [(dtype, rest, n) for dtype, rest, inner in KINDS for n in lengths(inner)]
SHARDED = [(dtype, rest, n) for dtype, rest, inner in KINDS for n in lengths(inner)[-2:]]
"""Arrays of several shards; a single shard is written with an index of its own size."""


def values(dtype: str, rest: tuple[int, ...], n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(1, np.iinfo(dtype).max, (n, *rest), dtype=dtype)


def write(folder: Path, name: str, data: np.ndarray, step: int = 1000) -> ArraySpec:
    writer = ArrayWriter(folder, name, data.dtype.name, data.shape[1:], CHUNK, SHARD)
    for start in range(0, len(data), step):
        writer.append(data[start : start + step])
    return writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.mark.parametrize(("dtype", "rest", "n"), CASES)
def test_zarr_reads_what_we_write(folder: Path, dtype: str, rest: tuple[int, ...], n: int) -> None:
    data = values(dtype, rest, n)
    spec = write(folder, "a", data)
    array: Any = zarr.open(folder / "a", mode="r")
    assert array.shape == data.shape
    assert array.dtype == data.dtype
    assert np.array_equal(array[:], data)
    assert len(spec.shards) == -(-n // spec.layout.shard)
    for number, shard in enumerate(spec.shards):
        stored = (folder / shard.key).read_bytes()
        first, last = spec.layout.shard_chunks(number)
        assert len(stored) == shard.bytes
        assert data_digest(stored) == shard.digest
        chunks = stored[: (last - first) * CHUNK]
        assert chunk_checksums(chunks, CHUNK).tolist() == spec.crc32c[first:last].tolist()
        # the end of the array is padded with zeros, and chunks after it are absent
        whole = np.zeros(((last - first) * spec.layout.inner, *rest), dtype=dtype)
        here = data[number * spec.layout.shard :][: spec.layout.shard]
        whole[: len(here)] = here
        assert chunks == whole.tobytes()
        assert len(stored) == len(chunks) + 16 * spec.layout.chunks_per_shard + 4
        index = np.frombuffer(stored[len(chunks) : -4], dtype="<u8").reshape(-1, 2)
        assert index[: last - first, 0].tolist() == [i * CHUNK for i in range(last - first)]
        assert (index[last - first :] == ABSENT).all()


@pytest.mark.parametrize(("dtype", "rest", "n"), SHARDED)
def test_we_write_the_bytes_that_zarr_writes(folder: Path, dtype: str, rest: tuple[int, ...], n: int) -> None:
    data = values(dtype, rest, n)
    inner = CHUNK // (data.dtype.itemsize * int(np.prod(rest, dtype=int)))
    array = zarr.create_array(
        folder / "z",
        shape=data.shape,
        dtype=dtype,
        chunks=(inner, *rest),
        shards=(4 * inner, *rest),
        compressors=None,
        filters=None,
        fill_value=0,
    )
    array[:] = data
    for shard in write(folder, "a", data).shards:
        assert (folder / shard.key).read_bytes() == (folder / shard.key.replace("a/", "z/", 1)).read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3000),
    steps=st.lists(st.integers(0, 700), max_size=20),
)
def test_any_cut_into_appends(tmp_path_factory: pytest.TempPathFactory, n: int, steps: list[int]) -> None:
    folder = tmp_path_factory.mktemp("array")
    data = values("uint16", (), n)
    writer = ArrayWriter(folder, "a", "uint16", (), CHUNK, SHARD)
    at = 0
    for step in [*steps, n]:
        writer.append(data[at : at + step])
        at = min(at + step, n)
    spec = writer.close()
    assert spec.crc32c.tolist() == write(folder, "b", data).crc32c.tolist()
    array: Any = zarr.open(folder / "a", mode="r")
    assert np.array_equal(array[:], data)


def test_the_padding_is_zeros_whatever_was_buffered_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmscale.store.segments.array_writer.FLUSH_BYTES", 2 * CHUNK)
    data = values("uint16", (), 2 * 512 + 300)
    spec = write(folder, "a", data)
    stored = (folder / spec.shards[-1].key).read_bytes()
    assert stored[600 : 2 * CHUNK] == bytes(2 * CHUNK - 600)


def test_rows_of_another_type_are_refused(folder: Path) -> None:
    writer = ArrayWriter(folder, "a", "uint16", (), CHUNK, SHARD)
    for rows in (np.zeros(3, np.int64), np.zeros((3, 1), np.uint16), np.zeros((), np.uint16)):
        with pytest.raises(DataError, match="do not fit"):
            writer.append(rows)
