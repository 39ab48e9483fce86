"""Restores through tiers: chunks of 64 KiB from the first source that has them with their recorded bytes."""

import logging
import zlib
from pathlib import Path

import pytest

from fmscale.checkpoint.format.names import SUMS
from fmscale.checkpoint.read.restore import RestoreResult, restore
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import CorruptData, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import CHUNK_BYTES
from fmscale.store.open import open_store
from fmscale.store.tiers.tier import Tier, TierUse
from tests.checkpoint.states import RUN, Fleet, Tensors, cut, pieces_at, restore_in, wrong
from tests.helpers.copy_tier import ABSENT, BAD, GOOD, CopyTier, copy_store
from tests.helpers.segments import flip
from tests.helpers.wire import Wire

STATE: Tensors = {(f"layers.{i}.w", "weight"): ("float32", (200, 500)) for i in range(4)}
"""1.6 MB: 25 chunks."""


@pytest.fixture
def saved(tmp_path: Path, in_thread: None) -> Backend:
    """A store with a checkpoint of two ranks."""
    url = str(tmp_path / "store")
    with Fleet(url, tensors=STATE, ranks=2, seed=None) as fleet:
        fleet.saved(1)
    return open_store(url)


@pytest.fixture
def second(saved: Backend, tmp_path: Path) -> Backend:
    store = open_store(str(tmp_path / "second"))
    copy_store(saved, store)
    return store


def restored(store: Backend, *tiers: Tier) -> RestoreResult:
    """Restore the whole state in one process; all its bytes are right."""
    pieces = pieces_at(STATE, cut(STATE, 1, None)[0], None)
    found = restore(store, RUN, pieces, tiers=tiers)
    assert found is not None
    assert wrong(pieces, 1) == []
    return found


def mixed(key: str, chunk: int) -> int:
    return (ABSENT, GOOD, BAD, GOOD)[(zlib.crc32(key.encode()) + chunk) % 4]


def data_chunks(wire: Wire) -> list[tuple[str, int]]:
    """Key and number of every chunk of a data file that was read from the store."""
    return sorted(
        (key, start // CHUNK_BYTES + i)
        for key, (start, size) in wire.ranges()
        for i in range(-(-size // CHUNK_BYTES))
        if key.endswith(".safetensors")
    )


def test_each_chunk_comes_from_the_first_that_has_it(saved: Backend, second: Backend) -> None:
    wire = Wire(saved)
    near, far = CopyTier(second, mixed), CopyTier(second, lambda key, chunk: GOOD if chunk % 2 else ABSENT)
    found = restored(wire, near, far)
    rest = [chunk for chunk in near.asked if mixed(*chunk) != GOOD]
    assert sorted(far.asked) == sorted(rest)
    left = [chunk for chunk in rest if chunk[1] % 2 == 0]
    assert data_chunks(wire) == sorted(left)
    assert min(len(left), len(near.asked) - len(rest), len(rest) - len(left)) > 0
    dropped = sum(mixed(*chunk) == BAD for chunk in near.asked)
    assert found.tiers == (
        TierUse(served=len(near.asked) - len(rest), dropped=dropped),
        TierUse(served=len(rest) - len(left)),
    )
    assert near.sizes.keys() == far.sizes.keys() == {key for key, _ in near.asked}
    assert set(near.sizes.values()) == {CHUNK_BYTES}


def test_only_bytes_that_the_store_gave_prove_it_whole(saved: Backend, second: Backend) -> None:
    """A tier's good copies hide damage of the store: such a restore does not mark the checkpoint as verified."""
    assert restored(saved).verified
    assert restored(saved, CopyTier(second, lambda key, chunk: ABSENT)).verified
    [key] = [info.key for info in saved.list_objects() if info.key.endswith("rank-00001-000.safetensors")]
    flip(saved, key, 2 * CHUNK_BYTES)
    found = restored(saved, CopyTier(second, lambda _, chunk: GOOD if chunk == 2 else ABSENT))
    assert not found.verified
    with pytest.raises(CorruptData, match="no checkpoint of run run is valid"):
        restored(saved, CopyTier(second, lambda _, chunk: ABSENT if chunk == 2 else GOOD))


@pytest.mark.parametrize("error", [OSError("gone"), StoreUnavailable("no answer")])
def test_a_tier_that_fails_in_the_middle_is_told_once_and_the_store_serves(
    saved: Backend, second: Backend, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    with caplog.at_level(logging.WARNING):
        found = restored(saved, CopyTier(second, error=error))
    assert found.verified
    assert found.tiers[0].failed == 2, "one for each file"
    assert [str(error) in record.message for record in caplog.records] == [True]


def test_ranks_of_any_number_read_through_their_tiers(saved: Backend, second: Backend) -> None:
    tier = CopyTier(second, mixed)
    found, pieces = restore_in(saved.url, 3, tensors=STATE, tiers=(tier,))
    assert [bad for mine in pieces for bad in wrong(mine, 1)] == []
    assert all(one is not None and one.tiers[0].served > 0 for one in found)


def test_a_file_without_checksums_comes_from_the_store_alone(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "plain")
    with Fleet(url, tensors=STATE, ranks=1, config=CheckpointConfig(digests=False, incremental=False)) as fleet:
        fleet.saved(1)
    store = open_store(url)
    assert not [info.key for info in store.list_objects() if info.key.endswith(SUMS)]
    tier = CopyTier(store)
    assert not restored(store, tier).verified
    assert tier.asked == []
