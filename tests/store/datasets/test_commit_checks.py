"""Commits and manifests with wrong content under right digests: refused or named, never believed."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import create_or_open, list_datasets, open_dataset
from fmscale.store.datasets.manifest import HEADER_KEY, Manifest
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.digest import canonical_json, data_digest, metadata_digest
from fmscale.store.log.retirement import retire
from tests.helpers.forge import as_version_1, forge
from tests.helpers.segments import documents, write_commit

LOG = "datasets/d"


@pytest.fixture
def store(memory_store: Backend) -> Backend:
    """A dataset with a commit of two segments, of 12 and 9 tokens."""
    write_commit(memory_store, "d", {"train": [documents([5, 7]), documents([9], seed=1)]})
    return memory_store


def recorded(fields: dict[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = fields["body"]["manifests"]["train"]
    return manifest


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: recorded(fields).update(tokens=-1000),
        lambda fields: recorded(fields).update(tokens=2**62),
        lambda fields: recorded(fields).update(documents=2.5),
        lambda fields: recorded(fields).pop("segments"),
        lambda fields: fields["body"].update(manifests=[]),
        lambda fields: fields["body"].pop("kind"),
    ],
)
def test_a_commit_that_no_ingest_writes(store: Backend, change: Callable[[dict[str, Any]], object]) -> None:
    forge(store, LOG, 0, change)
    with pytest.raises(CorruptData, match="is no commit"):
        open_dataset(store, "d")


@pytest.mark.parametrize("name", ["segments", "tokens", "documents", "bytes"])
def test_totals_that_contradict_the_manifest(store: Backend, name: str) -> None:
    forge(store, LOG, 0, lambda fields: recorded(fields).update({name: recorded(fields)[name] + 1}))
    dataset = open_dataset(store, "d")
    with pytest.raises(CorruptData, match=rf"not the one of its commit.*{name}"):
        dataset.commit(0).manifests["train"]
    problems = verify_dataset(store, dataset)
    assert {problem.key for problem in problems} == {dataset.commit(0).body["manifests"]["train"]["key"]}
    assert name in "".join(problem.what for problem in problems)


def put_header(store: Backend, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of the manifest, with its digest in the commit."""
    key = open_dataset(store, "d").commit(0).body["manifests"]["train"]["key"]
    table = pa.ipc.open_file(store.get(key)).read_all()
    fields = json.loads(table.schema.metadata[HEADER_KEY])
    change(fields)
    header = canonical_json(fields)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata({HEADER_KEY: header})) as writer:
        writer.write_table(table.replace_schema_metadata({HEADER_KEY: header}))
    data = bytes(sink.getvalue())
    store.put(key, data)

    def record(entry: dict[str, Any]) -> None:
        recorded(entry).update(
            digest=metadata_digest(header),
            object={"bytes": len(data), "digest": data_digest(data)},
            **{name: fields[name] for name in ("segments", "tokens", "documents", "bytes") if name in fields},
        )

    forge(store, LOG, 0, record)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 20},
        {"tokens": 10},
        {"documents": 2},
        {"segments": 3},
        {"segments": 1},
        {"block_rows": 0},
        {"block_rows": "2"},
        {"first_tokens": [3]},
        {"first_tokens": [-1]},
        {"first_documents": []},
        {"digests": []},
        {"folder": "datasets/e/segments/0123456789abcdef"},
        {"bytes": 7},
    ],
)
def test_a_manifest_that_contradicts_itself_or_its_segments(store: Backend, change: dict[str, Any]) -> None:
    """A wrong sum that the commit and the manifest agree about is found by `verify`, which reads the seals."""
    put_header(store, lambda fields: fields.update(change))
    dataset = open_dataset(store, "d")
    assert verify_dataset(store, dataset) != []
    if change.keys() & {"bytes", "documents"} or change == {"tokens": 20}:
        return
    with pytest.raises(CorruptData):
        list(dataset.commit(0).manifests["train"].rows())


def test_columns_that_fall(store: Backend) -> None:
    commit = open_dataset(store, "d").commit(0)
    key = commit.body["manifests"]["train"]["key"]
    table = pa.ipc.open_file(store.get(key)).read_all()
    header = json.loads(table.schema.metadata[HEADER_KEY])
    starts = pa.array([12, 0], pa.uint64())
    header["digests"][0][0] = metadata_digest(starts.buffers()[1].to_pybytes()[:16])
    changed = table.set_column(0, "first_token", starts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, changed.schema.with_metadata({HEADER_KEY: canonical_json(header)})) as writer:
        writer.write_table(changed)
    manifest = Manifest(sink.getvalue(), metadata_digest(canonical_json(header)), "m")
    with pytest.raises(CorruptData, match="first_token of block 0 does not ascend to 21"):
        manifest.place(3)


def test_the_log_of_another_dataset(store: Backend) -> None:
    write_commit(store, "e", {"train": [documents([3])]})
    store.put("datasets/e/log/000000000000.json", store.get(f"{LOG}/log/000000000000.json"))
    with pytest.raises(CorruptData, match=rf"belongs to another log: found '{LOG}'"):
        open_dataset(store, "e")
    for name in ("datasets/e", LOG):
        forge(store, name, 0, as_version_1)
    assert open_dataset(store, "d").commit(0).totals["train"].tokens == 21
    with pytest.raises(CorruptData, match="names objects outside datasets/e/manifests/"):
        open_dataset(store, "e")


def test_lost_entries_are_an_error_or_a_line(store: Backend, caplog: pytest.LogCaptureFixture) -> None:
    write_commit(store, "d", {"train": [documents([3], seed=2)]}, job="second")
    write_commit(store, "d", {"train": [documents([4], seed=3)]}, job="third")
    dataset = open_dataset(store, "d")
    retire(dataset.log, [1], lambda entry: [m["key"] for m in entry.body["manifests"].values()])
    assert verify_dataset(store, open_dataset(store, "d")) == []
    assert caplog.messages == []
    key = dataset.commit(2).body["manifests"]["train"]["key"]
    for number in (2, 3):
        store.delete(f"{LOG}/log/{number:012d}.json")
    assert verify_dataset(store, open_dataset(store, "d"), [0]) == []
    [line] = caplog.messages
    assert line.startswith("no commit of dataset d names ")
    assert key in line
    store.delete(f"{LOG}/log/000000000000.json")
    assert list_datasets(store) == ["d"], "a log without its first entry is a log"
    with pytest.raises(CorruptData, match=r"000000000000.json is missing"):
        create_or_open(store, "d")
    with pytest.raises(CorruptData, match=r"000000000000.json is missing"):
        open_dataset(store, "d")
