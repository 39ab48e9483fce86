"""Objects whose name determines their bytes are stored once, also after lost answers."""

import pytest

from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.doctor.probe import probe
from tests.helpers.faulty_backend import Fault, FaultyBackend


def test_says_whether_the_bytes_are_there(store: Backend) -> None:
    assert store_once(store, "x", b"1")
    assert store_once(store, "x", b"1")
    assert not store_once(store, "x", b"2")
    assert store.get("x") == b"1"


@pytest.mark.parametrize(("there", "same"), [(None, True), (b"1", True), (b"2", False)])
def test_a_lost_answer_is_resolved_by_reading_back(memory_store: Backend, there: bytes | None, same: bool) -> None:
    if there:
        memory_store.put("x", there)
    faulty = FaultyBackend(memory_store, {0: Fault.LOST})
    assert store_once(faulty, "x", b"1") is same


def test_what_stays_unknown_is_an_error(memory_store: Backend) -> None:
    with pytest.raises(StoreUnavailable):
        store_once(FaultyBackend(memory_store, {0: Fault.UNAVAILABLE}), "x", b"1")


def test_a_probe_over_a_lossy_network_finds_a_good_store_good(memory_store: Backend) -> None:
    faulty = FaultyBackend(memory_store)
    for _ in range(20):
        faulty.inject(Fault.LOST, "put_if_absent")
    assert probe(faulty).put_if_absent
