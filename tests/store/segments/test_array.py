"""Our arrays are Zarr's, both ways; zarr-python is the oracle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import CorruptData, DataError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import chunk_checksums, data_digest
from fmscale.store.open import open_store
from fmscale.store.segments.array import (
    ABSENT,
    ArraySpec,
    decode_index,
    decode_metadata,
    encode_index,
    encode_metadata,
    index_bytes,
    read_array,
)
from fmscale.store.segments.array_writer import ArrayWriter
from tests.helpers.segments import flip, truncate

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


@pytest.fixture
def backend(folder: Path) -> Backend:
    return open_store(str(folder))


@pytest.mark.parametrize(("dtype", "rest", "n"), CASES)
def test_zarr_reads_what_we_write(folder: Path, dtype: str, rest: tuple[int, ...], n: int) -> None:
    data = values(dtype, rest, n)
    spec = write(folder, "a", data)
    array: Any = zarr.open(folder / "a", mode="r")
    assert array.shape == data.shape
    assert array.dtype == data.dtype
    assert np.array_equal(array[:], data)
    assert len(spec.shards) == spec.layout.shards
    for number, shard in enumerate(spec.shards):
        stored = (folder / shard.key).read_bytes()
        first, last = spec.layout.shard_chunks(number)
        assert len(stored) == shard.bytes == spec.layout.shard_bytes(number)
        assert data_digest(stored) == shard.digest
        chunks = stored[: (last - first) * CHUNK]
        assert chunk_checksums(chunks, CHUNK).tolist() == spec.crc32c[first:last].tolist()
        # the end of the array is padded with zeros, and chunks behind it are absent
        whole = np.zeros(((last - first) * spec.layout.inner, *rest), dtype=dtype)
        here = data[number * spec.layout.shard :][: spec.layout.shard]
        whole[: len(here)] = here
        assert chunks == whole.tobytes()
        index = decode_index(stored[(last - first) * CHUNK :], spec.layout.chunks_per_shard)
        assert index[: last - first, 0].tolist() == [i * CHUNK for i in range(last - first)]
        assert (index[last - first :] == ABSENT).all()


@pytest.mark.parametrize(("dtype", "rest", "n"), CASES)
def test_we_read_what_zarr_writes(folder: Path, backend: Backend, dtype: str, rest: tuple[int, ...], n: int) -> None:
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
    if n:
        array[:] = data
    assert np.array_equal(read_array(backend, "z"), data)
    layout = decode_metadata(backend.get("z/zarr.json"), "z")
    ours = write(folder, "a", data)
    assert (layout.shape, layout.dtype, layout.inner) == (data.shape, dtype, ours.layout.inner)
    if len(ours.shards) > 1:  # then the shards are cut at the same rows, and the files are the same bytes
        for shard in ours.shards:
            assert backend.get(shard.key) == backend.get(shard.key.replace("a/", "z/", 1))


def test_chunks_and_shards_that_zarr_leaves_out_are_zeros(folder: Path, backend: Backend) -> None:
    data = np.zeros(5000, dtype=np.uint16)
    data[300:310] = 7  # chunk 1 of shard 0
    data[4500] = 9  # shard 4; shards 1 to 3 are not stored
    array = zarr.create_array(
        folder / "z",
        shape=(5000,),
        dtype="uint16",
        chunks=(256,),
        shards=(1024,),
        compressors=None,
        filters=None,
    )
    array[:] = data
    assert not (folder / "z/c/2").exists()
    assert np.array_equal(read_array(backend, "z"), data)
    assert np.array_equal(read_array(backend, "z", 290, 4300), data[290:4590])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3000),
    steps=st.lists(st.integers(0, 700), max_size=20),
    start=st.integers(0, 3100),
    count=st.integers(0, 3100),
)
def test_any_cut_into_appends_and_any_range(
    tmp_path_factory: pytest.TempPathFactory, n: int, steps: list[int], start: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("array")
    data = values("uint16", (), n)
    writer = ArrayWriter(folder, "a", "uint16", (), CHUNK, SHARD)
    at = 0
    for step in [*steps, n]:
        writer.append(data[at : at + step])
        at = min(at + step, n)
    spec = writer.close()
    assert spec.crc32c.tolist() == write(folder, "b", data).crc32c.tolist()
    backend = open_store(str(folder))
    assert np.array_equal(read_array(backend, "a", start, count), data[start : start + count])


def test_the_padding_is_zeros_whatever_was_buffered_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmscale.store.segments.array_writer.FLUSH_BYTES", 2 * CHUNK)
    data = values("uint16", (), 2 * 512 + 300)
    spec = write(folder, "a", data)
    stored = (folder / spec.shards[-1].key).read_bytes()
    assert stored[600 : 2 * CHUNK] == bytes(2 * CHUNK - 600)


def test_an_index_is_checked(folder: Path, backend: Backend) -> None:
    spec = write(folder, "a", values("uint16", (), 900))
    size = spec.shards[0].bytes
    flip(backend, "a/c/0", size - 20)
    with pytest.raises(CorruptData, match="index does not match its checksum"):
        read_array(backend, "a")
    truncate(backend, "a/c/0", 10)
    with pytest.raises(CorruptData, match="shorter than its index"):
        read_array(backend, "a")
    with pytest.raises(CorruptData):
        decode_index(encode_index(1, 4, CHUNK)[:-1], 4)
    backend.put("a/c/0", b"\0" * CHUNK + encode_index(4, 4, CHUNK))  # the index promises more than there is
    with pytest.raises(CorruptData, match="outside its shard"):
        read_array(backend, "a")
    assert index_bytes(4) == len(encode_index(1, 4, CHUNK))


def test_arrays_of_other_forms_are_refused_by_name(folder: Path) -> None:
    good = json.loads(encode_metadata(write(folder, "a", values("uint16", (), 10)).layout, {}))

    def refuse(document: dict[str, Any], match: str) -> None:
        with pytest.raises(FormatError, match=match):
            decode_metadata(json.dumps(document).encode(), "a/zarr.json")

    sharding = good["codecs"][0]["configuration"]
    bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
    zstd = {"name": "zstd", "configuration": {}}
    for change, match in [
        ({"codecs": [bytes_codec, zstd]}, "sharded array"),
        ({"codecs": [bytes_codec]}, "sharding_indexed"),
        ({"codecs": [_sharded(sharding, codecs=[bytes_codec, zstd])]}, "inner codecs"),
        ({"codecs": [_sharded(sharding, codecs=[_big(bytes_codec)])]}, "byte order"),
        ({"codecs": [_sharded(sharding, index_codecs=[bytes_codec])]}, "index codecs"),
        (
            {"codecs": [_sharded(sharding, index_codecs=[_big(bytes_codec), {"name": "crc32c"}])]},
            "byte order",
        ),
        ({"codecs": [_sharded(sharding, index_location="start")]}, "index location"),
        ({"codecs": [_sharded(sharding, chunk_shape=[100])]}, "inner chunks in a shard"),
        ({"fill_value": 1}, "fill_value"),
        ({"zarr_format": 4}, "zarr_format"),
        ({"chunk_key_encoding": {"name": "v2"}}, "chunk_key_encoding"),
        ({"storage_transformers": [{"name": "x"}]}, "storage_transformers"),
        ({"data_type": "r24"}, "r24"),
        ({"shape": [10, 4]}, "other axes"),
    ]:
        refuse({**good, **change}, match)
    with pytest.raises(FormatError, match="not the zarr"):
        decode_metadata(b"{", "a/zarr.json")


def _sharded(configuration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"name": "sharding_indexed", "configuration": {**configuration, **changes}}


def _big(codec: dict[str, Any]) -> dict[str, Any]:
    return {**codec, "configuration": {"endian": "big"}}


def test_rows_of_another_type_are_refused(folder: Path) -> None:
    writer = ArrayWriter(folder, "a", "uint16", (), CHUNK, SHARD)
    for rows in (np.zeros(3, np.int64), np.zeros((3, 1), np.uint16), np.zeros((), np.uint16)):
        with pytest.raises(DataError, match="do not fit"):
            writer.append(rows)
