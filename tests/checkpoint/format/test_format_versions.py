"""Checkpoints that earlier versions wrote stay readable to the byte."""

import zipfile
from pathlib import Path

import pytest
import torch

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.checkpoint import open_in
from fmscale.checkpoint.format.names import FORMAT_VERSION
from fmscale.checkpoint.format.piece import elements, whole
from fmscale.checkpoint.format.seal import decode_seal, encode_seal
from fmscale.checkpoint.read.restore import restore
from fmscale.checkpoint.read.verify import verify
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.fixtures import make_checkpoint_version as made


def stored(version: int, tmp_path: Path) -> Backend:
    path = made.FOLDER / f"checkpoint_version_{version}.zip"
    assert path.stat().st_size < 50_000
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "store")
    return open_store(str(tmp_path / "store"), read_only=True)


def expected(name: str, state: str, step: int) -> torch.Tensor:
    dtype, shape = made.STATE[name, state]
    full = torch.from_numpy(made.values(name, state, step, elements(shape)))
    return (full % 2 == 1 if dtype == "bool" else full.to(getattr(torch, dtype))).view(shape)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_checkpoints_of_every_version_are_read(version: int, tmp_path: Path) -> None:
    store = stored(version, tmp_path)
    found = list_checkpoints(store, made.RUN)
    assert [one.step for one in found] == list(made.STEPS)
    assert [one.referenced > 0 for one in found] == [False, True]
    for one in found:
        assert verify(store, one) == ([], True)
        opened = open_in(store, made.RUN, one.step)
        assert (opened.meta["note"], opened.meta["step"]) == (made.META["note"], one.step)
        assert opened.manifest.rank_meta == [{"rank": 0}, {"rank": 1}]
        assert {(t.name, t.state): (t.dtype, t.shape) for t in opened.manifest.tensors} == made.STATE
        for name, state in made.STATE:
            assert torch.equal(opened.tensor(name, state), expected(name, state, one.step)), (name, state)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_checkpoints_of_every_version_are_restored(version: int, tmp_path: Path) -> None:
    store = stored(version, tmp_path)
    live = {key: torch.zeros_like(expected(*key, 0)) for key in made.STATE}
    pieces = [whole(name, tensor, state) for (name, state), tensor in live.items()]
    restored = restore(store, made.RUN, pieces)
    assert restored is not None
    assert restored.step == made.STEPS[-1]
    assert all(torch.equal(tensor, expected(*key, made.STEPS[-1])) for key, tensor in live.items())


def test_the_format_is_still_that_of_its_number(tmp_path: Path) -> None:
    """A change of the stored bytes needs another FORMAT_VERSION and a fixture: seals and files are the same."""
    store = stored(FORMAT_VERSION, tmp_path)
    now = tmp_path / "now"
    made.make(now)
    again = open_store(str(now))
    keys = [info.key for info in store.list_objects(f"runs/{made.RUN}/checkpoints")]
    assert [info.key for info in again.list_objects(f"runs/{made.RUN}/checkpoints")] == keys
    for key in keys:
        if key.endswith((".json", ".safetensors", ".crc32c")):
            assert again.get(key) == store.get(key), key
        if "/seal-" in key:
            assert encode_seal(decode_seal(store.get(key), key)) == store.get(key)
    for before, after in zip(list_checkpoints(store, made.RUN), list_checkpoints(again, made.RUN), strict=True):
        assert before.body.keys() == after.body.keys()
        assert before.body["objects"] == after.body["objects"]
