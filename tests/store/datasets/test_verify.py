"""Every kind of object, flipped, truncated and deleted: `verify_dataset` names only that object."""

import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset, create_or_open, open_dataset
from fmscale.store.datasets.object_check import ObjectProblem
from fmscale.store.datasets.verify import size_of, verify_dataset
from fmscale.store.digest import metadata_digest
from fmscale.store.open import open_store
from fmscale.store.segments.seal import sealed, segment_prefix
from fmscale.store.segments.tokens import open_segment
from fmscale.store.segments.tokens_writer import TOKEN_CHUNK_BYTES
from tests.fixtures.make_format_version import FOLDER
from tests.helpers.records import write_records
from tests.helpers.segments import documents, flip, truncate, write_commit

JOB = metadata_digest(b"job")
RECORDS = 300


def tokens(store: Backend, name: str = "d") -> Dataset:
    """Two units of train, one with three shards of two chunks, and one of held_out."""
    train = [documents([5, 150_000, 7]), documents([300] * 9, seed=1)]
    write_commit(store, name, {"train": train, "held_out": [documents([40])]}, shard_tokens=65536)
    return open_dataset(store, name)


def records(store: Backend) -> Dataset:
    prefix = segment_prefix("r", JOB, 0, "train")
    table = pa.table({"data": [bytes([i % 256]) * 200 for i in range(RECORDS)]})
    seal = write_records(store, prefix, table, batch_bytes=500, file_bytes=40_000)
    create_or_open(store, "r").append_commit(
        job=JOB, segments={"train": [(0, seal)]}, tokenizer=None, dtype="", kind="records"
    )
    return open_dataset(store, "r")


def named(problems: list[ObjectProblem]) -> set[tuple[str, int | None]]:
    return {(problem.key, problem.chunk) for problem in problems}


def test_a_sound_dataset_has_no_problems_and_each_byte_is_read_once(store: Backend) -> None:
    dataset = tokens(store)
    counted: list[int] = []
    lock = threading.Lock()

    def advance(size: int) -> None:
        with lock:
            counted.append(size)

    before = sum(store.requests.bytes.get(kind, 0) for kind in ("get", "get_range"))
    assert verify_dataset(store, dataset, progress=advance) == []
    stored = {info.key: info.bytes for info in store.list_objects("")}
    data = sum(n for key, n in stored.items() if "/segments/" in key or "/manifests/" in key)
    assert sum(counted) == data == size_of(dataset, dataset.commits())
    read = sum(store.requests.bytes.get(kind, 0) for kind in ("get", "get_range")) - before
    others = sum(n for key, n in stored.items() if key.startswith(("tokenizers/", "datasets/d/log/")))
    assert data <= read <= data + others


def test_every_object_flipped_truncated_or_missing_is_named(memory_store: Backend) -> None:
    dataset = tokens(memory_store)
    keys = [info.key for info in memory_store.list_objects("")]
    covered = [key for key in keys if "/log/" not in key and key != "fmscale.json"]
    assert len(covered) == 1 + 2 + 3 * 10 + 2  # tokenizer, manifests, segments of ten objects, two more shards
    for key in covered:
        sound = memory_store.get(key)
        for offset in {0, len(sound) // 2, len(sound) - 1}:
            flip(memory_store, key, offset)
            assert key in {p.key for p in verify_dataset(memory_store, dataset)}, (key, offset)
            assert {p.key for p in verify_dataset(memory_store, dataset)} == {key}
            memory_store.put(key, sound)
        truncate(memory_store, key, len(sound) - 1)
        problems = verify_dataset(memory_store, dataset)
        assert {p.key for p in problems} == {key}
        memory_store.put(key, sound + b"x")
        assert {p.key for p in verify_dataset(memory_store, dataset)} == {key}
        memory_store.delete(key)
        problems = verify_dataset(memory_store, dataset)
        assert [(p.key, p.what) for p in problems] == [(key, "missing")]
        memory_store.put(key, sound)
    assert verify_dataset(memory_store, dataset) == []


def test_bad_chunks_are_numbered(store: Backend) -> None:
    dataset = tokens(store)
    row = dataset.commit(0).manifests["train"].row(0)
    segment = open_segment(store, row.prefix, row.seal)
    key = segment.array_shard("tokens", 1).key
    flip(store, key, TOKEN_CHUNK_BYTES - 1)
    flip(store, key, TOKEN_CHUNK_BYTES)
    other = segment.array_shard("document_ids", 0).key
    flip(store, other, 8)
    assert named(verify_dataset(store, dataset)) == {(key, 0), (key, 1), (other, 0)}
    truncate(store, key, TOKEN_CHUNK_BYTES + 100)
    problems = verify_dataset(store, dataset)
    assert named(problems) == {(key, 0), (key, 1), (other, 0)}
    assert f"truncated: {TOKEN_CHUNK_BYTES + 100} of " in "".join(p.what for p in problems)


def test_one_damaged_link_does_not_hide_other_damage(memory_store: Backend) -> None:
    dataset = tokens(memory_store)
    manifest = dataset.commit(0).body["manifests"]["train"]["key"]
    row = dataset.commit(0).manifests["train"].row(0)
    segment = open_segment(memory_store, row.prefix, row.seal)
    flip(memory_store, manifest, 7)  # padding after Arrow's magic bytes: the file is still readable
    flip(memory_store, f"{row.prefix}/checksums.arrow", 400)
    flip(memory_store, segment.array_shard("tokens", 0).key, 3)
    problems = verify_dataset(memory_store, dataset)
    # without checksums.arrow the shard's own digest still shows damage, but not the chunk
    assert named(problems) == {
        (manifest, None),
        (f"{row.prefix}/checksums.arrow", None),
        (segment.array_shard("tokens", 0).key, None),
    }


def test_commits_can_be_chosen(memory_store: Backend) -> None:
    tokens(memory_store)
    write_commit(memory_store, "d", {"train": [documents([9], seed=5)]}, job="second")
    dataset = open_dataset(memory_store, "d")
    key = dataset.commit(1).manifests["train"].segment(0)[0] + "/tokens/c/0"
    flip(memory_store, key, 0)
    assert verify_dataset(memory_store, dataset, [0]) == []
    assert verify_dataset(memory_store, dataset, [1]) == verify_dataset(memory_store, dataset)
    assert [(p.commit, p.key, p.chunk) for p in verify_dataset(memory_store, dataset)] == [(1, key, 0)]


def test_every_object_of_records_is_checked_chunk_by_chunk(memory_store: Backend) -> None:
    dataset = records(memory_store)
    assert verify_dataset(memory_store, dataset) == []
    size = sum(m["bytes"] + m["object"]["bytes"] for m in dataset.commit(0).body["manifests"].values())
    counted: list[int] = []
    verify_dataset(memory_store, dataset, progress=counted.append)
    assert sum(counted) == size
    keys = [info.key for info in memory_store.list_objects("datasets/r/segments")]
    files = [key for key in keys if "/records/" in key]
    assert (len(files), len(keys)) == (4, 4 + 2 * 2 + 4)
    for key in keys:
        sound = memory_store.get(key)
        for offset in (0, len(sound) // 3, len(sound) - 1):
            flip(memory_store, key, offset)
            (problem,) = verify_dataset(memory_store, dataset)
            chunk = offset // 4096 if key in files else 0 if "/c/" in key and offset < len(sound) - 1 else None
            assert (problem.key, problem.chunk) == (key, chunk)
            memory_store.put(key, sound)
        truncate(memory_store, key, len(sound) - 1)
        assert {p.key for p in verify_dataset(memory_store, dataset)} == {key}
        memory_store.delete(key)
        assert [(p.key, p.what) for p in verify_dataset(memory_store, dataset)] == [(key, "missing")]
        memory_store.put(key, sound)
    for key in (f"{segment_prefix('r', JOB, 0, 'train')}/checksums.arrow", files[1]):
        flip(memory_store, key, 5000 if key in files else 7)
    assert named(verify_dataset(memory_store, dataset)) == {
        (f"{segment_prefix('r', JOB, 0, 'train')}/checksums.arrow", None),
        (files[1], None),
    }


def test_records_of_version_1_are_checked_batch_by_batch(tmp_path: Path) -> None:
    with zipfile.ZipFile(FOLDER / "format_version_1.zip") as archive:
        archive.extractall(tmp_path)
    store = open_store(str(tmp_path))
    dataset = open_dataset(store, "tiny-records")
    assert verify_dataset(store, dataset) == []
    (file,) = [info.key for info in store.list_objects("datasets/tiny-records/segments") if "/records/" in info.key]
    flip(store, file, 900)
    (problem,) = verify_dataset(store, dataset)
    assert problem.key == file
    assert problem.chunk is not None


def test_a_seal_that_a_commit_does_not_agree_with(memory_store: Backend) -> None:
    """Digests alone cannot detect this: a manifest made from wrong counts is consistent in itself."""
    write_commit(memory_store, "d", {"train": [documents([5, 6])]})
    prefix = segment_prefix("e", JOB, 0, "train")
    for info in memory_store.list_objects("datasets/d/segments"):
        memory_store.put(info.key.replace("datasets/d/", "datasets/e/"), memory_store.get(info.key))
    seal = sealed(memory_store, prefix)
    assert seal is not None
    dataset = create_or_open(memory_store, "e")
    dataset._check_sealed = lambda job, segments: None  # type: ignore[method-assign]
    dataset.append_commit(job=JOB, segments={"train": [(0, replace(seal, tokens=12))]}, tokenizer=None, dtype="uint16")
    (problem,) = verify_dataset(memory_store, dataset)
    assert problem.key == f"{prefix}/seal.json"
    assert "12 tokens" in problem.what


def test_a_damaged_log_is_an_error(memory_store: Backend) -> None:
    tokens(memory_store)
    flip(memory_store, "datasets/d/log/000000000000.json", 40)
    with pytest.raises(CorruptData, match="log"):
        verify_dataset(memory_store, create_or_open(memory_store, "d"))


def test_parts_may_cut_chunks_anywhere(memory_store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tokens(memory_store)
    monkeypatch.setattr("fmscale.store.datasets.object_check.PART_BYTES", 10_007)
    assert verify_dataset(memory_store, dataset) == []
    row = dataset.commit(0).manifests["train"].row(0)
    key = f"{row.prefix}/tokens/c/2"
    flip(memory_store, key, 12_000)
    assert named(verify_dataset(memory_store, dataset)) == {(key, 0)}
    assert [p.what for p in verify_dataset(memory_store, dataset)] == ["damaged: bytes do not match their crc32c"]
