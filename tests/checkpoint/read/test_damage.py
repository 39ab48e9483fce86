"""A restore detects any damage of a stored checkpoint and takes the previous checkpoint; `verify` detects it too."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.read.verify import verify
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, Tensors, assert_restores

STATE: Tensors = {(f"w{i}", state): ("float32", (300, 150)) for i in range(4) for state in ("weight", "exp_avg")}
FOLDER = f"runs/{RUN}/checkpoints/%010d-00001"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three steps of two ranks, as a store's objects."""
    url = str(tmp_path_factory.mktemp("saved") / "store")
    with Fleet(url, tensors=STATE, ranks=2, seed=None, config=CheckpointConfig(incremental=False)) as fleet:
        for step in (1, 2, 3):
            fleet.saved(step)
    store = open_store(url)
    return {info.key: store.get(info.key) for info in store.list_objects("")}


@pytest.fixture
def store(saved: dict[str, bytes], memory_store: Backend) -> Backend:
    """A fresh copy of these objects in memory."""
    for key, data in saved.items():
        memory_store.put(key, data)
    return memory_store


def problems(store: Backend, step: int) -> list[str]:
    """Answer of `verify` for a step."""
    [found] = [one for one in list_checkpoints(store, RUN) if one.step == step]
    return [f"{one.key} {one.chunk}: {one.what}" for one in verify(store, found)[0]]


def assert_seen(store: Backend, key: str) -> None:
    """A restore skips step 3, restores step 2 exactly, and `verify` names the object."""
    for ranks in (1, 2):
        for one in assert_restores(store.url, 2, ranks=ranks, tensors=STATE):
            assert [(passed.step, bool(passed.reason)) for passed in one.passed_over] == [(3, True)]
    assert any(key in problem for problem in problems(store, 3))
    assert problems(store, 2) == []


def objects(store: Backend, step: int, ending: str) -> list[str]:
    return [info.key for info in store.list_objects(FOLDER % step) if info.key.endswith(ending)]


def flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def test_no_false_alarm(store: Backend) -> None:
    for ranks in (1, 2, 3):
        for one in assert_restores(store.url, 3, ranks=ranks, tensors=STATE):
            assert one.passed_over == ()
    assert problems(store, 3) == []


@pytest.mark.parametrize("ending", [".safetensors", ".crc32c", "manifest.arrow"])
def test_a_flipped_bit_anywhere(store: Backend, ending: str) -> None:
    chance = random.Random(ending)
    for _ in range(6):
        key = chance.choice(objects(store, 3, ending))
        data = store.get(key)
        # The padding and the header of a file are checked by `verify`; a restore reads only tensors.
        first = 4096 if ending == ".safetensors" else 0
        store.put(key, flipped(data, chance.randrange(first, len(data)), chance.randrange(8)))
        assert_seen(store, key)
        store.put(key, data)
    assert problems(store, 3) == []


def test_a_flipped_bit_in_a_header_is_seen_by_verify(store: Backend) -> None:
    [key, _] = objects(store, 3, ".safetensors")
    store.put(key, flipped(store.get(key), 9, 0))
    assert any(key in problem for problem in problems(store, 3))


Change = Callable[[Backend, str], None]


def cut(store: Backend, key: str) -> None:
    store.put(key, store.get(key)[: -len(store.get(key)) // 3])


def cut_one(store: Backend, key: str) -> None:
    store.put(key, store.get(key)[:-1])


def remove(store: Backend, key: str) -> None:
    store.delete(key)


def swap(store: Backend, key: str) -> None:
    """The other rank's file under this name."""
    other = key.replace("rank-00000", "rank-00001")
    mine, theirs = store.get(key), store.get(other)
    store.put(key, theirs)
    store.put(other, mine)


def stale(store: Backend, key: str) -> None:
    """The file of the step before."""
    store.put(key, store.get(key.replace("0000000003", "0000000002")))


def zero_page(store: Backend, key: str) -> None:
    data = bytearray(store.get(key))
    data[8192:12288] = bytes(4096)
    store.put(key, bytes(data))


def stale_chunk(store: Backend, key: str) -> None:
    """One chunk of the step before."""
    data, before = bytearray(store.get(key)), store.get(key.replace("0000000003", "0000000002"))
    data[65536:131072] = before[65536:131072]
    store.put(key, bytes(data))


@pytest.mark.parametrize("change", [cut, cut_one, remove, swap, stale, zero_page, stale_chunk])
def test_a_changed_file(store: Backend, change: Change) -> None:
    key = objects(store, 3, "rank-00000-000.safetensors")[0]
    change(store, key)
    assert_seen(store, key)


@pytest.mark.parametrize("change", [cut, remove, stale])
@pytest.mark.parametrize("ending", [".crc32c", "manifest.arrow"])
def test_changed_metadata(store: Backend, change: Change, ending: str) -> None:
    key = objects(store, 3, ending)[0]
    change(store, key)
    assert_seen(store, key)


def test_checksums_and_file_swapped_together_are_still_seen(store: Backend) -> None:
    """A file and its checksums of the previous step agree with each other, but not with the manifest."""
    key = objects(store, 3, "rank-00000-000.safetensors")[0]
    stale(store, key)
    stale(store, key + ".crc32c")
    assert_seen(store, key)


def test_seals_are_not_needed_once_it_is_committed(store: Backend) -> None:
    for key in objects(store, 3, ".json"):
        store.delete(key)
    assert_restores(store.url, 3, tensors=STATE)


@pytest.mark.slow
def test_two_hundred_flips(store: Backend) -> None:
    chance = random.Random(0)
    for _ in range(200):
        key = chance.choice(objects(store, 3, ".safetensors"))
        data = store.get(key)
        store.put(key, flipped(data, chance.randrange(4096, len(data)), chance.randrange(8)))
        assert_seen(store, key)
        store.put(key, data)


def test_without_digests_damage_stays_unseen_and_verify_says_so(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, tensors=STATE, ranks=1, seed=None, config=CheckpointConfig(digests=False)) as fleet:
        fleet.saved(1)
    store = open_store(url)
    [found] = list_checkpoints(store, RUN)
    assert verify(store, found) == ([], False)
    cut_one(store, objects(store, 1, ".safetensors")[0])
    assert verify(store, found)[0] != []
