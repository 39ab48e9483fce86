"""A manifest, a seal or a log entry with wrong content under right digests: refused or named, never believed."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fmscale.checkpoint.catalog import list_checkpoints, load_manifest, newest
from fmscale.checkpoint.checkpoint import open_in
from fmscale.checkpoint.format.manifest import COLUMNS, CheckpointManifest, decode, encode
from fmscale.checkpoint.read.verify import verify
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, Tensors, assert_restores
from tests.helpers.forge import as_version_1, forge

STATE: Tensors = {(f"w{i}", state): ("float32", (30, 15)) for i in range(3) for state in ("weight", "exp_avg")}
LOG = f"runs/{RUN}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    url = str(tmp_path_factory.mktemp("saved") / "store")
    with Fleet(url, tensors=STATE, ranks=2, seed=None, config=CheckpointConfig(incremental=False)) as fleet:
        for step in (1, 2):
            fleet.saved(step)
    store = open_store(url)
    return {info.key: store.get(info.key) for info in store.list_objects("")}


@pytest.fixture
def store(saved: dict[str, bytes], memory_store: Backend) -> Backend:
    for key, data in saved.items():
        memory_store.put(key, data)
    return memory_store


def manifest_of(store: Backend) -> CheckpointManifest:
    return load_manifest(store, list_checkpoints(store, RUN)[-1])


def put_manifest(store: Backend, data: bytes) -> None:
    """Store these bytes as the newest manifest, with their digest in the log."""
    found = list_checkpoints(store, RUN)[-1]
    store.put(found.body["manifest"]["key"], data)
    forge(store, LOG, found.entry, lambda fields: fields["body"]["manifest"].update(digest=metadata_digest(data)))


def refused(store: Backend) -> str:
    """The reason why the newest checkpoint is refused by a restore and by `verify`; the one before is restored."""
    for one in assert_restores(store.url, 1, tensors=STATE):
        assert [(passed.step, bool(passed.reason)) for passed in one.passed_over] == [(2, True)]
    [problem] = verify(store, list_checkpoints(store, RUN)[-1])[0]
    return problem.what


def put(column: str, row: int, value: int) -> Callable[[CheckpointManifest], object]:
    return lambda manifest: manifest.columns[column].__setitem__(row, value)


def without(*rows: int) -> Callable[[CheckpointManifest], object]:
    def change(manifest: CheckpointManifest) -> None:
        for name in COLUMNS:
            manifest.columns[name] = np.delete(manifest.columns[name], rows)
        manifest.digests = [digest for row, digest in enumerate(manifest.digests) if row not in rows]

    return change


def head(place: str, *keys: Any) -> Callable[[CheckpointManifest], object]:
    """Change a value of the head: `place` is its field, `keys` the way in it and the new value."""

    def change(manifest: CheckpointManifest) -> None:
        at: Any = manifest.head
        manifest.head.update(json.loads(canonical_json(manifest.head)))
        for key in (place, *keys[:-2]):
            at = at[key]
        at[keys[-2]] = keys[-1]

    return change


PIECES = 12
CHANGES = {
    "a row too few": without(3),
    "a tensor without rows": without(*range(PIECES - 2, PIECES)),
    "a shifted start": put("start", 1, 7),
    "a negative count": put("count", 0, -1),
    "a start that overflows": put("start", 1, 2**63 - 1),
    "an offset behind the file": put("offset", 0, 2**40),
    "a negative offset": put("offset", 0, -4),
    "an offset between elements": put("offset", 0, 4097),
    "the bytes of another piece": put("offset", 0, 4096 + 64),
    "no such tensor": put("tensor", PIECES - 1, 99),
    "the tensor -1": put("tensor", 0, -1),
    "no such file": put("file", 0, 99),
    "the file -1": put("file", 0, -1),
    "a file of -1 bytes": head("files", 0, 1, -1),
    "a file of a fraction": head("files", 0, 1, 10_000.5),
    "a file of another run": head("files", 0, 0, "runs/other/checkpoints/0000000002-00001/rank-00000-000.safetensors"),
    "a file without a name": head("files", 0, 0, None),
    "an unknown type": head("tensors", 0, 2, "float31"),
    "a type that is a list": head("tensors", 0, 2, []),
    "a negative shape": head("tensors", 0, 3, [-30, -15]),
    "a shape beyond all bounds": head("tensors", 0, 3, [2**40, 2**40]),
    "a tensor twice": head("tensors", 1, 0, "w0"),
    "meta that is no dict": lambda manifest: manifest.head.update(meta=[]),
    "a rank without meta": lambda manifest: manifest.head.update(rank_meta=[None]),
    "a step as text": lambda manifest: manifest.head.update(step="2"),
    "another step": lambda manifest: manifest.head.update(step=3),
    "another folder": lambda manifest: manifest.head.update(folder="runs/else/checkpoints/0000000002-00001"),
    "no tensors": lambda manifest: manifest.head.pop("tensors"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_manifest_that_no_save_writes(store: Backend, change: Callable[[CheckpointManifest], object]) -> None:
    manifest = manifest_of(store)
    for name in COLUMNS:
        manifest.columns[name] = manifest.columns[name].copy()
    change(manifest)
    put_manifest(store, encode(manifest))
    found = list_checkpoints(store, RUN)[-1]
    with pytest.raises(CorruptData, match=r"manifest.arrow"):
        load_manifest(store, found)
    assert [problem.key for problem in verify(store, found)[0]] == [found.body["manifest"]["key"]]


def test_a_restore_passes_over_such_a_manifest(store: Backend) -> None:
    manifest = manifest_of(store)
    without(3)(manifest)
    put_manifest(store, encode(manifest))
    assert "leave a gap or overlap" in refused(store)


def arrow(store: Backend) -> pa.Table:
    return pa.ipc.open_file(store.get(list_checkpoints(store, RUN)[-1].body["manifest"]["key"])).read_all()


def test_foreign_bytes_under_a_right_digest(store: Backend) -> None:
    table, whole = arrow(store), encode(manifest_of(store))
    tables = [
        table.drop_columns(["offset"]),
        table.set_column(1, "start", pa.array([None] * PIECES, pa.int64())),
        table.set_column(1, "start", pa.array(["x"] * PIECES)),
        table.replace_schema_metadata({}),
    ]
    contents = [b"", b"ARROW1", whole[:-40], whole[: len(whole) // 2]]
    for changed in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, changed.schema) as writer:
            writer.write_table(changed)
        contents.append(bytes(sink.getvalue()))
    for data in contents:
        with pytest.raises(CorruptData, match="x is no manifest"):
            decode(data, metadata_digest(data), "x")


def test_random_bytes_under_a_right_digest(store: Backend) -> None:
    chance, whole = random.Random(0), encode(manifest_of(store))
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode(bytes(data), metadata_digest(bytes(data)), "x")
        except CorruptData:
            refused += 1
    assert 100 < refused < 300, "a name may have other letters"


def test_two_places_exchanged_contradict_the_seals(store: Backend) -> None:
    """No check of the manifest alone can see it: `verify` compares with the seals."""
    manifest = manifest_of(store)
    offset = manifest.columns["offset"].copy()
    rows = np.flatnonzero(manifest.columns["file"] == 0)[:2]
    offset[rows] = offset[rows[::-1]]
    manifest.columns["offset"] = offset
    put_manifest(store, encode(manifest))
    [problem] = verify(store, list_checkpoints(store, RUN)[-1])[0]
    assert (problem.key[-14:], problem.what) == ("manifest.arrow", "differs from the ranks' seals")


def test_seals_and_totals_that_contradict_the_entry(store: Backend) -> None:
    found = list_checkpoints(store, RUN)[-1]
    key = f"{found.folder}/seal-00001.json"
    whole = store.get(key)
    fields = json.loads(whole)
    for pieces in ({"file": [-1] * 6}, {"tensor": [9] * 6}, {"start": [1] * 6}):
        store.put(key, canonical_json({**fields, "pieces": fields["pieces"] | pieces}))
        [problem] = verify(store, found)[0]
        assert problem.key in (key, found.folder)
    for lost in (b"", bytes(100)):  # a crash of the machine may leave an unsynced seal so
        store.put(key, lost)
        assert verify(store, found) == ([], True)
    store.put(key, whole)
    forge(store, LOG, found.entry, lambda fields: fields["body"].update(bytes=7))
    [problem] = verify(store, list_checkpoints(store, RUN)[-1])[0]
    assert problem.what.startswith("the log entry records bytes 7, and the ranks' seals")


@pytest.mark.parametrize("change", [{"step": 7}, {"rank": 0}, {"world_size": 3}, {"folder": "runs/run/checkpoint"}])
def test_a_seal_of_another_rank_or_checkpoint_is_named(store: Backend, change: dict[str, Any]) -> None:
    found = list_checkpoints(store, RUN)[-1]
    key = f"{found.folder}/seal-00001.json"
    store.put(key, canonical_json({**json.loads(store.get(key)), **change}))
    assert [problem.key for problem in verify(store, found)[0]] == [key]


@pytest.mark.parametrize("digest", ["A" * 32, "z" * 32, "a" * 31])
def test_a_damaged_digest_in_a_seal_is_named(tmp_path: Path, digest: str) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, tensors=STATE, ranks=1, seed=None) as fleet:
        fleet.saved(1)
    store = open_store(url)
    [found] = list_checkpoints(store, RUN)
    key = f"{found.folder}/seal-00000.json"
    fields = json.loads(store.get(key))
    assert len(fields["pieces"]["digest"][0]) == 32
    fields["pieces"]["digest"][0] = digest
    store.put(key, canonical_json(fields))
    assert [problem.key for problem in verify(store, found)[0]] == [key]


@pytest.mark.parametrize(
    "change",
    [{"step": -2}, {"world_size": None}, {"bytes": 1.5}, {"objects": 3}, {"manifest": []}, {"folder": None}],
)
def test_an_entry_that_no_save_writes(store: Backend, change: dict[str, Any]) -> None:
    forge(store, LOG, list_checkpoints(store, RUN)[-1].entry, lambda fields: fields["body"].update(change))
    with pytest.raises(CorruptData, match="is no checkpoint"):
        list_checkpoints(store, RUN)


@pytest.mark.parametrize("field", ["format_version", "files", "tensors"])
def test_an_entry_without_a_field(store: Backend, field: str) -> None:
    forge(store, LOG, list_checkpoints(store, RUN)[-1].entry, lambda fields: fields["body"].pop(field))
    assert len(verify(store, list_checkpoints(store, RUN)[-1])[0]) == 1


def test_a_whole_log_of_another_run(store: Backend) -> None:
    """Entries name their log; those of version 1 are known by their folders."""
    for info in store.list_objects(f"{LOG}/log"):
        store.put(info.key.replace(LOG, "runs/other"), store.get(info.key))
    with pytest.raises(CorruptData, match=rf"belongs to another log: found '{LOG}'"):
        list_checkpoints(store, "other")
    for number in range(len(list(store.list_objects(f"{LOG}/log")))):
        forge(store, "runs/other", number, as_version_1)
        forge(store, LOG, number, as_version_1)
    assert [found.step for found in list_checkpoints(store, RUN)] == [1, 2]
    with pytest.raises(CorruptData, match="names objects outside runs/other/checkpoints/"):
        list_checkpoints(store, "other")


def test_a_lost_newest_entry_is_said_and_a_gap_is_an_error(store: Backend, caplog: pytest.LogCaptureFixture) -> None:
    entries = [info.key for info in store.list_objects(f"{LOG}/log")]
    last = list_checkpoints(store, RUN)[-1]
    assert verify(store, newest(store, RUN)) == ([], True)
    open_in(store, RUN)
    assert caplog.messages == []
    for key in entries[last.entry :]:
        store.delete(key)
    uses: list[Callable[[], object]] = [
        lambda: open_in(store, RUN),
        lambda: newest(store, RUN),
        lambda: assert_restores(store.url, 1, ranks=1, tensors=STATE),
    ]
    for use in uses:
        caplog.clear()
        use()
        [line] = caplog.messages
        assert line.startswith(f"{last.folder} is newer than every checkpoint in the log")
    found = newest(store, RUN)
    store.put(f"{LOG}/log/{last.entry + 1:012d}.json", b"{}")
    with pytest.raises(CorruptData, match="is missing although later ones exist"):
        verify(store, found)


def test_a_folder_that_was_left_behind_long_ago_is_not_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path))
    log = Log(store, LOG, RUN_KINDS)
    store.put(f"{LOG}/checkpoints/0000000001-00001/rank-00000-000.safetensors", b"killed")
    store.put(f"{LOG}/checkpoints/elsewhere/x", b"not of a save")
    body = dict.fromkeys(("step", "world_size", "bytes", "referenced", "epoch"), 2)
    folder = f"{LOG}/checkpoints/0000000002-00001"
    log.append("checkpoint", {**body, "folder": folder, "objects": [], "manifest": {"key": f"{folder}/m"}})
    assert newest(store, RUN).step == 2
    assert caplog.messages == []
