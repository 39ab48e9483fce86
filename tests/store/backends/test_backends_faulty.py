"""The fault-injecting backend causes its faults correctly; the log's tests rely on it."""

import pytest

from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend
from tests.helpers.faulty_backend import Crash, Fault, FaultyBackend, count_calls


def test_lost_answer_has_taken_effect(memory_store: Backend) -> None:
    faulty = FaultyBackend(memory_store, {0: Fault.LOST})
    with pytest.raises(StoreUnavailable):
        faulty.put_if_absent("k", b"1")
    assert memory_store.get("k") == b"1"
    assert faulty.put_if_absent("k", b"2") is False


def test_unavailable_has_no_effect(memory_store: Backend) -> None:
    faulty = FaultyBackend(memory_store)
    faulty.inject(Fault.UNAVAILABLE, "put", "k")
    faulty.put("other", b"")
    with pytest.raises(StoreUnavailable):
        faulty.put("k", b"1")
    assert not faulty.exists("k")
    assert [one.fault for one in faulty.calls] == [None, Fault.UNAVAILABLE, None]


def test_late_request_arrives_before_the_next_write(memory_store: Backend) -> None:
    faulty = FaultyBackend(memory_store, {0: Fault.LATE})
    with pytest.raises(StoreUnavailable):
        faulty.put_if_absent("k", b"late")
    assert not faulty.exists("k")
    assert faulty.put_if_absent("k", b"again") is False
    assert memory_store.get("k") == b"late"


def test_duplicate_returns_the_first_or_the_last_answer(memory_store: Backend) -> None:
    faulty = FaultyBackend(memory_store, {0: Fault.DUPLICATE, 1: Fault.DUPLICATE_LAST})
    assert faulty.put_if_absent("a", b"") is True
    assert faulty.put_if_absent("b", b"") is False


@pytest.mark.parametrize(("fault", "written"), [(Fault.CRASH_BEFORE, False), (Fault.CRASH_AFTER, True)])
def test_crash_is_final(memory_store: Backend, fault: Fault, written: bool) -> None:
    faulty = FaultyBackend(memory_store, {0: fault})
    with pytest.raises(Crash):
        faulty.put("k", b"1")
    assert memory_store.exists("k") is written
    with pytest.raises(Crash):
        faulty.exists("k")


def test_count_calls(memory_store: Backend) -> None:
    memory_store.put("a", b"")
    assert count_calls(lambda backend: [backend.get("a"), backend.exists("b")], memory_store) == 2
