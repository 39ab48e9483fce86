"""A checkpoint through zarr-python: the same elements, read and checked on access."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmscale.checkpoint.checkpoint import Checkpoint, open_in
from fmscale.checkpoint.export import zarr as zarr_module
from fmscale.checkpoint.export.zarr import as_zarr
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import AccessDenied, CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, SMALL, Fleet, Tensors, values

TENSORS: Tensors = {
    **SMALL,
    ("deep", "weight"): ("float64", (5, 3, 2)),
    ("a/b", "weight"): ("int8", (3, 2)),
}


@pytest.fixture
def saved(memory_store: Backend, in_thread: None) -> Checkpoint:
    with Fleet(memory_store.url, tensors=TENSORS, ranks=3, seed=4) as fleet:
        fleet.saved(1)
    return open_in(open_store(memory_store.url), RUN)


@pytest.mark.parametrize("chunk_bytes", [1, 100, 4 << 20])
def test_every_tensor_reads_as_it_was_saved(
    saved: Checkpoint, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(zarr_module, "CHUNK_BYTES", chunk_bytes)
    group: Any = as_zarr(saved)
    assert (group.attrs["step"], group.attrs["run"], group.attrs["meta"]) == (1, RUN, {"step": 1})
    for (name, state), (dtype, shape) in TENSORS.items():
        array = group[f"{state}/{name}"]
        expected = values((name, state), dtype, 1, 0, int(np.prod(shape))).view(shape)
        found = torch.from_numpy(np.ascontiguousarray(np.asarray(array[...]))).view(shape)
        assert array.attrs["dtype"] == dtype
        assert torch.equal(found.view(getattr(torch, dtype)), expected), name
    assert {key for key, _ in group["exp_avg"].arrays()} == {n for n, s in TENSORS if s == "exp_avg"}
    assert sorted(key for key, _ in group.groups()) == ["buffer", "exp_avg", "exp_avg_sq", "weight"]
    assert np.array_equal(group["weight/deep"][1:3, 1, :], np.asarray(saved.tensor("deep")[1:3, 1, :]))


def test_only_what_is_looked_at_is_read(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    large: Tensors = {("w", "weight"): ("float32", (4096, 1024))}
    with Fleet(url, tensors=large, ranks=2, seed=None) as fleet:
        fleet.saved(1)
    opened = open_in(open_store(url), RUN)
    array: Any = as_zarr(opened)["weight/w"]
    assert opened._reader.bytes_read == 0
    assert array[2000, 3] == values(("w", "weight"), "float32", 1, 2000 * 1024 + 3, 1).item()
    assert 0 < opened._reader.bytes_read < 5 << 20


def test_damage_is_seen(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=CheckpointConfig()) as fleet:
        fleet.saved(1)
    [path] = Path(url).rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    group: Any = as_zarr(open_in(open_store(url), RUN))
    with pytest.raises(CorruptData):
        _ = [array[...] for _, array in group["weight"].arrays()]


def test_nothing_can_be_written(saved: Checkpoint) -> None:
    array: Any = as_zarr(saved)["weight/deep"]
    with pytest.raises(AccessDenied):
        array[...] = 1.0
    assert torch.equal(torch.from_numpy(array[...]), saved.tensor("deep"))
