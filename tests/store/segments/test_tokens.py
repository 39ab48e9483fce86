import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from fmscale.errors import (
    Conflict,
    CorruptData,
    DataError,
    FormatError,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, metadata_digest, verify_chunks
from fmscale.store.segments.handle import read_rows
from fmscale.store.segments.seal import sealed
from fmscale.store.segments.tokens import (
    TokenSegment,
    open_segment,
    read_document_table,
    read_tokens,
    split_tokens,
)
from fmscale.store.segments.tokens_writer import TOKEN_CHUNK_BYTES, TokenSegmentWriter
from tests.helpers.faulty_backend import Crash, Fault, FaultyBackend
from tests.helpers.segments import Document, documents, flip, read_documents, truncate, write_segment

PREFIX = "datasets/d/segments/job/00000000-train"
# Lengths in tokens: an empty document, one token, an exact chunk, a chunk and one token, several chunks and shards of 2
# chunks in one document.
LENGTHS = [0, 1, 32766, 1, 0, 1, 32768, 200_000, 17, 0, 300, 65536, *range(1, 1200)]
SHARD_TOKENS = 65536


def built(store: Backend, dtype: str = "uint16") -> tuple[list[Document], TokenSegment]:
    docs = documents(LENGTHS, dtype=dtype)
    seal = write_segment(store, PREFIX, docs, dtype=dtype, shard_tokens=SHARD_TOKENS)
    assert (seal.tokens, seal.documents, seal.kind) == (sum(LENGTHS), len(LENGTHS), "tokens")
    return docs, open_segment(store, PREFIX, seal.digest)


def test_what_goes_in_comes_out(store: Backend) -> None:
    docs, segment = built(store)
    tokens = np.concatenate([doc.tokens for doc in docs])
    ends = np.cumsum(LENGTHS)
    assert segment.tokens == len(tokens)
    assert segment.arrays["tokens"].layout.shard == SHARD_TOKENS
    assert np.array_equal(read_tokens(store, segment, 0, len(tokens)), tokens)
    rng = np.random.default_rng(0)
    edges = [0, 1, 32767, 32768, 32769, 65535, 65536, 65537, len(tokens) - 1, len(tokens)]
    for start in edges + rng.integers(0, len(tokens), 10).tolist():
        for count in (0, 1, 4097, 70_000):
            count = min(count, len(tokens) - start)
            assert np.array_equal(read_tokens(store, segment, start, count), tokens[start : start + count])
    split = list(split_tokens(store, segment, ends, 70_000))
    assert [first for first, _ in split] == np.cumsum([0, *(len(parts) for _, parts in split)])[:-1].tolist()
    parts = [part for _, parts in split for part in parts]
    assert all(np.array_equal(part, doc.tokens) for part, doc in zip(parts, docs, strict=True))
    found_ends, ids = read_documents(store, segment, 3, 700)
    assert found_ends.tolist() == ends[3:703].tolist()
    assert ids.dtype == np.uint64
    assert [row.tobytes() for row in ids] == [doc.id for doc in docs[3:703]]
    table = read_document_table(store, segment).to_pydict()
    assert table == {
        "id": [doc.id for doc in docs],
        "source": [doc.source for doc in docs],
        "start": [doc.start for doc in docs],
        "stop": [doc.stop for doc in docs],
        "tokens": [len(doc.tokens) for doc in docs],
    }
    starts = np.arange(0, len(tokens), TOKEN_CHUNK_BYTES // 2)
    first = np.searchsorted(ends, starts, side="right")
    assert segment.first_document.tolist() == first.tolist()


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_shards_are_chunks_that_verify_alone(local_store: Backend, dtype: str) -> None:
    docs, segment = built(local_store, dtype)
    tokens = np.concatenate([doc.tokens for doc in docs])
    for number in range(-(-segment.tokens // segment.arrays["tokens"].layout.shard)):
        ref = segment.array_shard("tokens", number)
        data = bytearray(ref.bytes)
        local_store.read_into(ref.key, 0, memoryview(data))
        assert ref.chunk_bytes == TOKEN_CHUNK_BYTES
        assert verify_chunks(data, ref.crc32c, ref.chunk_bytes) == -1
        here = tokens[number * segment.arrays["tokens"].layout.shard :][: segment.arrays["tokens"].layout.shard]
        assert np.array_equal(np.frombuffer(data, dtype=dtype)[: len(here)], here)


def test_the_segment_is_a_zarr_group(local_store: Backend) -> None:
    docs, segment = built(local_store)
    path = local_store.local_path(PREFIX)
    assert path is not None
    group: Any = zarr.open_group(path, mode="r")
    assert np.array_equal(group["tokens"][:], np.concatenate([doc.tokens for doc in docs]))
    assert np.array_equal(group["document_ends"][:], np.cumsum(LENGTHS))
    assert group["document_ids"][:].tobytes() == b"".join(doc.id for doc in docs)
    assert group.attrs["fmscale"] == {"format_version": 1, "kind": "tokens"}
    table = pa.ipc.open_file(str(path / "documents.arrow")).read_all()
    assert table.num_rows == segment.documents


def test_opening_is_two_reads(store: Backend) -> None:
    built(store)
    digest = sealed(store, PREFIX).digest  # type: ignore[union-attr]
    before = dict(store.requests.count)
    open_segment(store, PREFIX, digest)
    after = store.requests.count
    assert {kind: n - before.get(kind, 0) for kind, n in after.items() if n != before.get(kind, 0)} == {"get": 2}


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [32768], [32769]])
def test_segments_of_any_size(local_store: Backend, lengths: list[int]) -> None:
    docs = documents(lengths)
    seal = write_segment(local_store, PREFIX, docs)
    segment = open_segment(local_store, PREFIX, seal.digest)
    assert (segment.tokens, segment.documents) == (sum(lengths), len(lengths))
    assert read_tokens(local_store, segment, 0, segment.tokens).tolist() == [
        token for doc in docs for token in doc.tokens
    ]
    ends, ids = read_documents(local_store, segment, 0, len(lengths))
    assert ends.tolist() == np.cumsum(lengths).tolist()
    assert ids.shape == (len(lengths), 2)
    assert read_document_table(local_store, segment).num_rows == len(lengths)
    stored = sum(info.bytes for info in local_store.list_objects(PREFIX))
    assert stored == seal.bytes


def test_many_documents_in_batches(local_store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three record batches, whose dictionary of sources grows from one to the next."""
    monkeypatch.setattr("fmscale.store.segments.documents_writer.DOCUMENT_BATCH", 1000)
    docs = documents([2] * 2500)
    seal = write_segment(local_store, PREFIX, docs)
    segment = open_segment(local_store, PREFIX, seal.digest)
    table = read_document_table(local_store, segment)
    assert table.column("source").num_chunks == 3
    assert table.column("source").to_pylist() == [doc.source for doc in docs]
    _, ids = read_documents(local_store, segment, 900, 1500)
    assert ids.tobytes() == b"".join(doc.id for doc in docs[900:2400])


def test_reads_outside_are_refused(local_store: Backend) -> None:
    _, segment = built(local_store)
    for start, count in [(-1, 2), (0, -1), (segment.tokens, 1), (0, segment.tokens + 1)]:
        with pytest.raises(DataError, match="outside"):
            read_tokens(local_store, segment, start, count)


@pytest.mark.parametrize("name", ["tokens", "document_ends", "document_ids"])
def test_a_flipped_or_short_shard_is_named_with_its_chunk(local_store: Backend, name: str) -> None:
    _, segment = built(local_store)
    rows = segment.arrays[name].layout.rows
    ref = segment.array_shard(name, 0)
    flip(local_store, ref.key, ref.chunk_bytes + 5)
    with pytest.raises(CorruptData, match=f"Chunk 1 of {ref.key}"):
        read_rows(local_store, segment, name, 0, rows)
    read_rows(local_store, segment, name, 0, 1)  # the rest is served
    truncate(local_store, ref.key, ref.chunk_bytes)
    with pytest.raises(CorruptData, match=ref.key):
        read_rows(local_store, segment, name, 0, rows)
    local_store.delete(ref.key)
    with pytest.raises(ObjectNotFound, match=ref.key):
        read_rows(local_store, segment, name, 0, rows)


@pytest.mark.parametrize("name", ["seal.json", "checksums.arrow", "documents.arrow"])
def test_every_byte_of_the_metadata_counts(memory_store: Backend, name: str) -> None:
    write_segment(memory_store, PREFIX, documents([5, 6]))
    digest = sealed(memory_store, PREFIX).digest  # type: ignore[union-attr]
    key = f"{PREFIX}/{name}"
    size = memory_store.head(key).bytes
    for offset in range(0, size, 13):
        flip(memory_store, key, offset)
        with pytest.raises(CorruptData, match=name):
            read_document_table(memory_store, open_segment(memory_store, PREFIX, digest))
        flip(memory_store, key, offset)
    truncate(memory_store, key, size - 1)
    with pytest.raises(CorruptData, match=name):
        read_document_table(memory_store, open_segment(memory_store, PREFIX, digest))


def test_another_segments_seal_is_refused(local_store: Backend) -> None:
    write_segment(local_store, PREFIX, documents([5]))
    other = write_segment(local_store, f"{PREFIX}2", documents([5], seed=1))
    with pytest.raises(CorruptData, match="digest"):
        open_segment(local_store, PREFIX, other.digest)


def test_finishing_again_stores_nothing(store: Backend) -> None:
    first = write_segment(store, PREFIX, documents([5, 6]))
    before = store.requests.count.get("put", 0)
    bytes_before = sum(n for kind, n in store.requests.bytes.items() if kind.startswith("put"))
    assert write_segment(store, PREFIX, documents([5, 6])) == first
    assert store.requests.count.get("put", 0) == before
    assert sum(n for kind, n in store.requests.bytes.items() if kind.startswith("put")) == bytes_before


def test_a_seal_is_never_overwritten(store: Backend) -> None:
    first = write_segment(store, PREFIX, documents([5, 6]))
    with pytest.raises(Conflict, match="other content"):
        write_segment(store, PREFIX, documents([5, 7]))
    segment = open_segment(store, PREFIX, first.digest)
    assert np.array_equal(read_tokens(store, segment, 0, 5), documents([5, 6])[0].tokens)


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.UNAVAILABLE, Fault.LOST])
def test_a_stop_at_any_call_leaves_a_whole_segment_or_none(memory_store: Backend, tmp_path: Path, fault: Fault) -> None:
    docs = documents([70_000, 5, 0, 9])
    call = 0
    while True:
        prefix = f"{PREFIX}{call}"
        faulty = FaultyBackend(memory_store, {call: fault})
        with contextlib.suppress(Crash, StoreUnavailable):
            write_segment(faulty, prefix, docs, shard_tokens=SHARD_TOKENS, scratch=tmp_path)
        assert list(tmp_path.iterdir()) == []
        there = sealed(memory_store, prefix)
        if there is not None:
            stored = sum(info.bytes for info in memory_store.list_objects(prefix))
            assert stored == there.bytes
        again = write_segment(memory_store, prefix, docs, shard_tokens=SHARD_TOKENS)
        segment = open_segment(memory_store, prefix, again.digest)
        assert read_tokens(memory_store, segment, 69_999, 2).tolist() == [
            docs[0].tokens[-1],
            docs[1].tokens[0],
        ]
        assert there in (None, again)
        if len(faulty.calls) <= call:  # one past the last call
            break
        call += 1
    assert call == 1 + 6 + 4 + 1  # look, metadata, shards, seal


def test_scratch_is_empty_afterwards(memory_store: Backend, tmp_path: Path) -> None:
    write_segment(memory_store, PREFIX, documents([5]), scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with TokenSegmentWriter(tmp_path, dtype="uint16", split="train") as writer:
        writer.add(documents([9])[0].tokens, bytes(16), "a", 0, 1)
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refused", [False, True])
def test_finish_cleans_up_by_itself(memory_store: Backend, tmp_path: Path, refused: bool) -> None:
    if refused:
        memory_store.put(f"{PREFIX}/seal.json", b"another")
    writer = TokenSegmentWriter(tmp_path, dtype="uint16", split="train")
    with contextlib.suppress(Conflict):
        writer.finish(memory_store, PREFIX)
    assert list(tmp_path.iterdir()) == []


def test_documents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with TokenSegmentWriter(tmp_path, dtype="uint16", split="train") as writer:
        for tokens in (np.zeros(3, np.uint32), np.zeros((3, 1), np.uint16), np.zeros(3, np.int64)):
            with pytest.raises(DataError, match="do not fit into a segment of uint16"):
                writer.add(tokens, bytes(16), "a.txt", 0, 1)
        with pytest.raises(DataError, match="16 bytes"):
            writer.add(np.zeros(3, np.uint16), bytes(15), "a.txt", 0, 1)
        assert (writer.tokens, writer.documents) == (0, 0)
    with pytest.raises(DataError, match="uint16 or uint32"):
        TokenSegmentWriter(tmp_path, dtype="int64", split="train")


def test_a_scratch_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="scratch"):
        TokenSegmentWriter(tmp_path / "file", dtype="uint16", split="train")


def test_a_segment_of_records_is_not_one_of_tokens(memory_store: Backend) -> None:
    seal = canonical_json({"format_version": 1, "kind": "records"})
    memory_store.put(f"{PREFIX}/seal.json", seal)
    with pytest.raises(FormatError, match="not a segment of tokens"):
        open_segment(memory_store, PREFIX, metadata_digest(seal))
