"""Restores at any number of ranks: only of needed bytes, only of valid checkpoints, only of the same model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmscale.checkpoint.catalog import list_checkpoints, parse_address
from fmscale.checkpoint.format.piece import whole
from fmscale.checkpoint.read import reader
from fmscale.checkpoint.read.restore import restore
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError, CorruptData, RankError, StoreUnavailable
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import CHUNK_BYTES
from fmscale.store.open import open_store
from tests.checkpoint.states import (
    RUN,
    SMALL,
    Fleet,
    Tensors,
    assert_restores,
    cut,
    hash_store,
    in_ranks,
    pieces_at,
    restore_in,
    wrong,
)
from tests.helpers.faulty_backend import Fault, FaultyBackend

BIG: Tensors = {(f"layers.{i}.w", state): ("float32", (700, 1000)) for i in range(3) for state in ("weight", "exp_avg")}


def test_four_ranks_to_two_to_three_to_one(tmp_path: Path, in_thread: None) -> None:
    """Each size restores the previous size's save, bit for bit, and saves it again."""
    url = str(tmp_path / "store")
    step = 1
    with Fleet(url, ranks=4, seed=None) as fleet:
        fleet.saved(step)
    for ranks in (2, 3, 1):
        with Fleet(url, ranks=ranks, seed=ranks) as fleet:
            store = hash_store()

            def one(rank: int, fleet: Fleet = fleet, ranks: int = ranks, store: Any = store, step: int = step) -> None:
                waits = HostWaits(store, World(rank=rank, world_size=ranks))
                restored = restore(open_store(url), RUN, fleet.pieces[rank], waits=waits)
                assert restored is not None
                assert restored.step == step

            in_ranks(one, ranks)
            assert [bad for mine in fleet.pieces for bad in wrong(mine, step)] == []
            step += 1
            fleet.saved(step)
    assert_restores(url, 4, ranks=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 40_000))
def test_any_tiling_restores_into_any_other(
    in_thread: None, ranks: int, others: int, seed: int, other_seed: int, size: int
) -> None:
    tensors: Tensors = {
        **SMALL,
        ("odd", "weight"): ("uint8", (size,)),
        ("wide", "m"): ("float64", (size // 3, 2)),
    }
    url = f"memory://{seed}-{other_seed}-{ranks}-{others}-{size}"
    with Fleet(url, tensors=tensors, ranks=ranks, seed=seed) as fleet:
        fleet.saved(3)
    assert_restores(url, 3, ranks=others, tensors=tensors, seed=other_seed)


def test_a_rank_reads_little_more_than_it_needs(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, tensors=BIG, ranks=4, seed=None) as fleet:
        reports = fleet.saved(1)
    total = sum(piece.tensor.nbytes for mine in fleet.pieces for piece in mine)
    for [report] in reports:
        assert report.bytes_written == pytest.approx(total / 4, rel=0.05)
    for ranks in (2, 3, 1):
        for one in assert_restores(url, 1, ranks=ranks, tensors=BIG, seed=None):
            assert one.bytes_needed == pytest.approx(total / ranks, rel=0.05)
            # For a range that ends within a chunk of 64 KiB the whole chunk is read and checked.
            assert one.bytes_read <= 1.05 * one.bytes_needed + 24 * 65536
    big_enough = 64 * 1024 * 1024
    assert (12 * 65536) / big_enough < 0.05, "with 64 MB a rank and more it is below 1.05"


def test_ranges_of_ranks_may_overlap(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2) as fleet:
        fleet.saved(1)
    everything = [part for mine in cut(SMALL, 1, None) for part in mine]
    store = hash_store()

    def one(rank: int) -> list[str]:
        pieces = pieces_at(SMALL, everything, None)
        restore(open_store(url), RUN, pieces, waits=HostWaits(store, World(rank=rank, world_size=2)))
        return wrong(pieces, 1)

    assert in_ranks(one, 2) == [[], []]


def test_pieces_of_a_rank_may_overlap_and_each_chunk_is_read_once(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen reference begins with the weights of the model beside it."""
    monkeypatch.setattr(reader, "SPAN_BYTES", 4 * CHUNK_BYTES)
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, tensors=BIG, seed=None) as fleet:
        fleet.saved(1)
    twice = [pieces_at(BIG, cut(BIG, 1, None)[0], None) for _ in range(2)]
    result = restore(open_store(url), RUN, [piece for copy in twice for piece in copy])
    assert [wrong(copy, 1) for copy in twice] == [[], []]
    assert result is not None
    assert result.bytes_read <= 1.01 * result.bytes_needed / 2


def spoiled(url: str, which: int) -> None:
    """Flip a bit of a checkpoint's first file."""
    store = open_store(url)
    folder = f"runs/{RUN}/checkpoints/{which:010d}-00001"
    key = f"{folder}/rank-00001-000.safetensors"
    data = bytearray(store.get(key))
    data[-100] ^= 4
    store.put(key, bytes(data))


def test_the_newest_that_all_ranks_find_valid_is_taken_and_the_others_named(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    config = CheckpointConfig(incremental=False)
    with Fleet(url, ranks=2, config=config) as fleet:
        for step in (1, 2, 3):
            fleet.saved(step)
    spoiled(url, 3)
    for one in assert_restores(url, 2, ranks=3):
        [passed] = one.passed_over
        assert passed.step == 3
        assert "checksum" in passed.reason
        assert "rank-00001-000.safetensors, chunk 0" in passed.reason
    spoiled(url, 2)
    spoiled(url, 1)
    with pytest.raises(CorruptData, match="no checkpoint of run run is valid"):
        restore_in(url, 1)
    with pytest.raises(CorruptData, match="step 2"):
        restore_in(url, 1, which=2)


def test_damage_that_only_one_rank_meets_is_damage_for_all(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, tensors=BIG, ranks=2, seed=None, config=CheckpointConfig(incremental=False)) as fleet:
        for step in (1, 2):
            fleet.saved(step)
    store = open_store(url)
    key = f"runs/{RUN}/checkpoints/0000000002-00001/rank-00001-000.safetensors"
    data = bytearray(store.get(key))
    data[-100] ^= 4
    store.put(key, bytes(data))
    for one in assert_restores(url, 1, ranks=2, tensors=BIG, seed=None):
        [passed] = one.passed_over
        assert passed.reason.startswith("rank 1: ")
        assert "rank 0: " not in passed.reason


def test_a_checkpoint_of_another_model_is_refused_by_all_ranks_with_the_differences(
    tmp_path: Path, in_thread: None
) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2) as fleet:
        fleet.saved(1)
    other = dict(SMALL)
    del other["layers.1.norm.weight", "exp_avg"]
    other["layers.2.wq.weight", "weight"] = ("float32", (40, 24))
    other["layers.0.wq.weight", "weight"] = ("float32", (24, 40))
    other["table", "weight"] = ("float32", (7, 11))
    for ranks in (1, 3):
        with pytest.raises(ConfigError, match="of another model") as caught:
            restore_in(url, ranks, tensors=other)
        text = str(caught.value)
        assert "only in the model: layers.2.wq.weight;" in text
        assert "only in the checkpoint: layers.1.norm.weight (exp_avg)" in text
        assert "layers.0.wq.weight (weight): [40, 24] in the checkpoint, [24, 40] in the model" in text
        assert "table: bfloat16 [7, 11] in the checkpoint, float32 [7, 11] in the model" in text
    part = {key: value for key, value in SMALL.items() if key[1] == "weight"}
    for name, shape in (("wq.weight", (48, 24)), ("norm.weight", (48,))):
        for state in ("weight", "exp_avg", "exp_avg_sq"):
            other.pop((f"layers.1.{name}", state), None)
            other[f"layers.0.{name}", state] = ("float32", shape)
    other["table", "weight"] = SMALL["table", "weight"]
    with pytest.raises(ConfigError) as caught:
        restore_in(url, 2, tensors=other)
    assert caught.value.found == (
        "only in the model: layers.2.wq.weight; only in the checkpoint: layers.1.norm.weight, layers.1.wq.weight; "
        "different: layers.0.norm.weight: [24] in the checkpoint, [48] in the model, "
        "layers.0.wq.weight: [40, 24] in the checkpoint, [48, 24] in the model"
    )
    with pytest.raises(ConfigError, match="only in the checkpoint"):
        restore_in(url, 2, tensors=part)
    with pytest.raises(ConfigError, match=r"different: layers\.0\.norm\.weight: \[24\] in the checkpoint"):
        restore_in(url, 2, tensors={**part, ("layers.0.norm.weight", "weight"): ("float32", (48,))})
    assert_restores(url, 1, ranks=2, tensors=part, partial=True)


def test_a_store_that_fails_is_not_a_damaged_checkpoint(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1) as fleet:
        fleet.saved(1)
    store = hash_store()

    def one(rank: int) -> str:
        backend = FaultyBackend(open_store(url))
        if rank == 1:
            for _ in range(3):
                backend.inject(Fault.UNAVAILABLE, "read_into")
        pieces = pieces_at(SMALL, cut(SMALL, 2, 1)[rank], None)
        try:
            restore(backend, RUN, pieces, waits=HostWaits(store, World(rank=rank, world_size=2)), deadline=20)
        except (StoreUnavailable, RankError) as error:
            return f"{type(error).__name__}: {error}"
        return "restored"

    first, second = in_ranks(one, 2)
    assert first.startswith("RankError: rank 1 failed: the store did not complete read_into")
    assert second.startswith("StoreUnavailable")


def test_which(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=CheckpointConfig(keep_last=5)) as fleet:
        for step in (5, 10, 10):
            fleet.saved(step)
    found = list_checkpoints(open_store(url), RUN)
    assert [(one.step, one.folder.rsplit("/", 1)[1]) for one in found] == [
        (5, "0000000005-00001"),
        (10, "0000000010-00001"),
        (10, "0000000010-00001-1"),
    ]
    [restored], _ = restore_in(url, 1, which=10)
    assert restored is not None
    assert restored.entry == found[2].entry
    [restored], _ = restore_in(url, 1, which=f"entry{found[1].entry}")
    assert restored is not None
    assert restored.entry == found[1].entry
    with pytest.raises(ConfigError, match="Steps there: 5, 10, 10"):
        restore_in(url, 1, which=7)


def test_a_zero_dimensional_and_an_empty_tensor(memory_store: Backend, in_thread: None) -> None:
    tensors: Tensors = {("step", "step"): ("float32", ()), ("none", "weight"): ("float32", (0, 4))}
    with Fleet(memory_store.url, tensors=tensors, ranks=1, seed=None) as fleet:
        pieces = fleet.pieces[0] + [whole("none", torch.zeros(0, 4))]
        fleet.pieces = [pieces]
        fleet.saved(2)
    scalar = whole("step", torch.tensor(0.0), "step")
    assert scalar.shape == ()
    restored = restore(memory_store, RUN, [scalar, dataclasses.replace(pieces[-1])])
    assert restored is not None
    assert restored.step == 2


@pytest.mark.parametrize("address", ["store", "store#", "#run", "store#run@", "store#@5"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address"):
        parse_address(address)


def test_addresses() -> None:
    assert parse_address("s3://b/p?region=x#run@5") == ("s3://b/p?region=x", "run", "5")
    assert parse_address("runs/store#run") == ("runs/store", "run", "auto")


def test_a_restore_that_read_every_byte_says_so(tmp_path: Path, in_thread: None) -> None:
    """Only all ranks together verify; a restore with an omitted part or without checksums does not verify."""
    url = str(tmp_path / "store")
    with Fleet(url, ranks=3) as fleet:
        fleet.saved(1)
    assert [one.verified for one in assert_restores(url, 1, ranks=2)] == [True, True]
    large: Tensors = {(f"w{i}", "weight"): ("float32", (300, 300)) for i in range(4)}
    with Fleet(url, tensors=large, ranks=2, config=CheckpointConfig(keep_last=2)) as fleet:
        fleet.saved(2)
    some = dict(list(large.items())[:2])
    [part] = assert_restores(url, 2, ranks=1, tensors=some, partial=True)
    assert not part.verified, "chunks of other tensors were not read"
    [alone] = assert_restores(url, 2, ranks=1, tensors=large)
    assert alone.verified
    assert not alone.marked
    with Fleet(url, ranks=1, config=CheckpointConfig(digests=False)) as fleet:
        fleet.saved(3)
    assert [one.verified for one in assert_restores(url, 3, ranks=1)] == [False]
