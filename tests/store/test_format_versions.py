"""Stores of earlier versions stay readable, and later versions are refused by name."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fmscale.errors import CorruptData, DataError, FmscaleError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import MASKING_VERSION
from fmscale.store.datasets.dataset import list_datasets, open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.log.log import DATASET_KINDS, Log
from fmscale.store.open import open_store
from fmscale.store.segments.records import open_record_segment, read_records
from fmscale.store.segments.records_version_1 import open_records, read_batch
from fmscale.store.segments.seal import FORMAT_VERSION, RECORDS_VERSION, sealed
from fmscale.store.segments.tokens import open_segment, read_document_table, read_tokens
from tests.fixtures import make_format_version as made
from tests.fixtures import make_records_version as records
from tests.helpers.records import record_id, write_records
from tests.helpers.segments import documents, flip, read_documents, write_segment


def stored(version: int, tmp_path: Path, name: str = "format_version") -> Backend:
    path = made.FOLDER / f"{name}_{version}.zip"
    assert path.stat().st_size < 50_000
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "store")
    return open_store(str(tmp_path / "store"), read_only=True)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_tokens_of_every_version_are_read(version: int, tmp_path: Path) -> None:
    store = stored(version, tmp_path)
    assert list_datasets(store) == ["tiny", "tiny-records"]
    dataset = open_dataset(store, "tiny")
    assert verify_dataset(store, dataset) == []
    commits = dataset.commits()
    assert [commit.body["extra"] for commit in commits] == [{"n": 0}, {"n": 1}]
    assert {(c.bos, c.eos, c.dtype, load_tokenizer(store, str(c.tokenizer))) for c in commits} == {
        (1, 2, "uint16", made.TOKENIZER)
    }
    for commit, splits in zip(commits, made.CONTENT, strict=True):
        assert sorted(commit.manifests) == sorted(splits)
        for split, units in splits.items():
            for row, docs in zip(commit.manifests[split].rows(), units, strict=True):
                segment = open_segment(store, row.prefix, row.seal)
                tokens = read_tokens(store, segment, 0, segment.tokens).tolist()
                assert tokens == [token for length, _ in docs for token in made.tokens(length).tolist()]
                ends, ids = read_documents(store, segment, 0, segment.documents)
                assert ends.tolist() == [sum(n for n, _ in docs[: i + 1]) for i in range(len(docs))]
                assert [row.tobytes() for row in ids] == [made.document_id(s, n) for n, s in docs]
                table = read_document_table(store, segment).to_pydict()
                assert table["source"] == [source for _, source in docs]
                assert table["stop"] == table["tokens"] == [length for length, _ in docs]


def test_a_dataset_of_records_of_version_1_is_read(tmp_path: Path) -> None:
    store = stored(1, tmp_path)
    dataset = open_dataset(store, "tiny-records")
    assert verify_dataset(store, dataset) == []
    segment = open_records(store, *dataset.commit(0).manifests["train"].segment(0))
    batches = [read_batch(store, segment, i) for i in range(segment.batches)]
    assert len(batches) > 2
    assert pa.Table.from_batches(batches).column("image").to_pylist() == made.RECORDS


def test_records_of_version_1_are_read_and_their_damage_is_named(tmp_path: Path) -> None:
    store = stored(1, tmp_path, "records_version")
    digest = sealed(store, records.PREFIX).digest  # type: ignore[union-attr]
    segment = open_records(store, records.PREFIX, digest)
    assert (len(segment.files), segment.records) == (2, 20)
    batches = [read_batch(store, segment, i) for i in range(segment.batches)]
    found = pa.Table.from_batches(batches)
    assert found.equals(records.TABLE)
    assert segment.schema.metadata == records.TABLE.schema.metadata
    with pytest.raises(DataError, match="no such"):
        read_batch(store, segment, segment.batches)
    with pytest.raises(FormatError, match="another version"):
        open_record_segment(store, records.PREFIX, digest)
    key, offset, size = segment.batch_range(3)
    flip(open_store(str(tmp_path / "store")), key, offset + size - 1)
    read_batch(store, segment, 2)
    with pytest.raises(CorruptData, match=f"Batch 3 of {key}"):
        read_batch(store, segment, 3)


def test_records_of_version_2_are_read(tmp_path: Path) -> None:
    store = stored(2, tmp_path, "records_version")
    segment = open_record_segment(store, records.PREFIX, sealed(store, records.PREFIX).digest)  # type: ignore[union-attr]
    assert len(segment.files) == 4
    assert read_records(store, segment, 0, 20).equals(records.TABLE, check_metadata=True)
    assert read_document_table(store, segment)["id"].to_pylist() == [record_id(i) for i in range(20)]


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, None, "1"])
def test_seals_of_other_versions_are_refused(memory_store: Backend, version: Any) -> None:
    write_segment(memory_store, "p", documents([5]))
    seal = canonical_json({**json.loads(memory_store.get("p/seal.json")), "format_version": version})
    memory_store.put("p/seal.json", seal)
    for read in (
        lambda: open_segment(memory_store, "p", metadata_digest(seal)),
        lambda: sealed(memory_store, "p"),
    ):
        with pytest.raises(FormatError, match="format_version") as caught:
            read()
        assert "upgrade fmscale" in caught.value.remedy


def test_records_of_later_versions_are_refused(memory_store: Backend) -> None:
    write_records(memory_store, "p", records.TABLE)
    seal = canonical_json({**json.loads(memory_store.get("p/seal.json")), "format_version": RECORDS_VERSION + 1})
    memory_store.put("p/seal.json", seal)
    for read in (open_records, open_record_segment):
        with pytest.raises(FormatError, match="reads versions 1 to 2"):
            read(memory_store, "p", metadata_digest(seal))


def test_commits_of_later_versions_are_refused(memory_store: Backend) -> None:
    log = Log(memory_store, "datasets/d", DATASET_KINDS)
    log.append("commit", {"format_version": MASKING_VERSION + 1})
    with pytest.raises(FmscaleError, match="format_version"):
        open_dataset(memory_store, "d").commits()


def test_the_fixtures_are_what_this_version_writes(tmp_path: Path) -> None:
    """The same objects, byte for byte: a change of format cannot slip in without a new version. Only Arrow files, and
    their digests, may differ between versions of pyarrow.
    """
    made.make(tmp_path / "now")
    now, then = open_store(str(tmp_path / "now")), stored(FORMAT_VERSION, tmp_path / "then")
    plain = same_objects(now, then)
    assert len(plain) == 1 + 4 * 7 + 1  # tokenizer; three shards and four zarr.json a segment; a second shard
    records.make(tmp_path / "records")
    now, then = open_store(str(tmp_path / "records")), stored(RECORDS_VERSION, tmp_path, "records_version")
    assert len(same_objects(now, then)) == 2 + 3  # the shard of ids, and that of batches; zarr.json


def same_objects(now: Backend, then: Backend) -> list[str]:
    """Keys of equal objects; the rest, Arrow files and seals, agree in their names and fields."""
    keys, others = (
        {info.key for info in store.list_objects("") if "tiny-records" not in info.key} - {"fmscale.json"}
        for store in (then, now)
    )
    plain = [key for key in sorted(keys) if not key.endswith((".arrow", "seal.json")) and "/log/" not in key]
    assert [(key, now.get(key)) for key in plain] == [(key, then.get(key)) for key in plain]
    assert {key for key in keys if "/manifests/" not in key} == {k for k in others if "/manifests/" not in k}
    for key in (key for key in keys if key.endswith("seal.json")):
        assert shape(json.loads(now.get(key))) == shape(json.loads(then.get(key)))
    return plain


def shape(value: Any) -> Any:
    """A seal without fields that depend on the bytes of Arrow files."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if key not in ("digest", "bytes")}
    return [shape(item) for item in value] if isinstance(value, list) else value
