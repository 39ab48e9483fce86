"""Stores of earlier versions stay readable, and later versions are refused by name."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fmscale.errors import FmscaleError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import list_datasets, open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.log.log import DATASET_KINDS, Log
from fmscale.store.open import open_store
from fmscale.store.segments.records import open_records, read_batch
from fmscale.store.segments.seal import FORMAT_VERSION, sealed
from fmscale.store.segments.tokens import open_segment, read_document_table, read_documents, read_tokens
from tests.fixtures import make_format_version as made
from tests.helpers.segments import documents, write_segment


def stored(version: int, tmp_path: Path) -> Backend:
    path = made.FOLDER / f"format_version_{version}.zip"
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


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_records_of_every_version_are_read(version: int, tmp_path: Path) -> None:
    store = stored(version, tmp_path)
    dataset = open_dataset(store, "tiny-records")
    assert verify_dataset(store, dataset) == []
    segment = open_records(store, *dataset.commit(0).manifests["train"].segment(0))
    batches = [read_batch(store, segment, i) for i in range(segment.batches)]
    assert len(batches) > 2
    assert pa.Table.from_batches(batches).column("image").to_pylist() == made.RECORDS


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, None, "1"])
def test_seals_of_other_versions_are_refused(memory_store: Backend, version: Any) -> None:
    write_segment(memory_store, "p", documents([5]))
    seal = canonical_json({**json.loads(memory_store.get("p/seal.json")), "format_version": version})
    memory_store.put("p/seal.json", seal)
    for read in (
        lambda: open_segment(memory_store, "p", metadata_digest(seal)),
        lambda: open_records(memory_store, "p", metadata_digest(seal)),
        lambda: sealed(memory_store, "p"),
    ):
        with pytest.raises(FormatError, match="format_version") as caught:
            read()
        assert "upgrade fmscale" in caught.value.remedy


def test_commits_of_later_versions_are_refused(memory_store: Backend) -> None:
    log = Log(memory_store, "datasets/d", DATASET_KINDS)
    log.append("commit", {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(FmscaleError, match="format_version"):
        open_dataset(memory_store, "d").commits()


def test_the_fixture_is_what_this_version_writes(tmp_path: Path) -> None:
    """The same objects, byte for byte: a change of format cannot slip in without a new version. Only Arrow files, and
    their digests, may differ between versions of pyarrow.
    """
    made.make(tmp_path / "now")
    now, then = open_store(str(tmp_path / "now")), stored(FORMAT_VERSION, tmp_path)
    keys, others = ([info.key for info in store.list_objects("")] for store in (then, now))
    plain = [key for key in keys if not key.endswith((".arrow", "seal.json")) and "/log/" not in key]
    assert len(plain) == 1 + 4 * 7 + 1  # tokenizer; three shards and four zarr.json a segment; a second shard
    assert [(key, now.get(key)) for key in plain] == [(key, then.get(key)) for key in plain]
    assert {key for key in keys if "/manifests/" not in key} == {k for k in others if "/manifests/" not in k}
    for key in (key for key in keys if key.endswith("seal.json")):
        assert shape(json.loads(now.get(key))) == shape(json.loads(then.get(key)))


def shape(value: Any) -> Any:
    """A seal without fields that depend on the bytes of Arrow files."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if key not in ("digest", "bytes")}
    return [shape(item) for item in value] if isinstance(value, list) else value
