"""Leases: only the newest holder writes; older holders cannot, even without knowledge of it."""

import pytest

from fmscale.errors import LeaseLost, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import DATASET_KINDS, RUN_KINDS, Log
from tests.helpers.stepped import Process


def open_log(store: Backend) -> Log:
    return Log(store, "runs/r", RUN_KINDS)


def test_a_zombie_cannot_commit(store: Backend) -> None:
    zombie = acquire(open_log(store), "job 1 on node a")
    assert zombie.append("checkpoint", {"step": 1}).lease == 1
    requeued = acquire(open_log(store), "job 1 on node b")
    assert requeued.number == 2
    with pytest.raises(LeaseLost, match=r"newer run.*lease 1, the log is at 2"):
        zombie.append("checkpoint", {"step": 2})
    assert requeued.append("checkpoint", {"step": 2}).number == 3
    with pytest.raises(LeaseLost):
        zombie.append("checkpoint", {"step": 3})
    entries = list(open_log(store).entries())
    assert [(entry.kind, entry.lease) for entry in entries] == [
        ("lease", 1),
        ("checkpoint", 1),
        ("lease", 2),
        ("checkpoint", 2),
    ]


def test_a_zombie_whose_request_was_on_its_way(
    local_store: Backend,
) -> None:
    process = Process(local_store)
    process.start(lambda: acquire(Log(process.store, "runs/r", RUN_KINDS), "zombie"))
    process.finish()
    zombie = process.result
    process.start(lambda: zombie.append("checkpoint", {}))
    assert process.call == "put_if_absent"
    requeued = acquire(open_log(local_store), "requeued")
    process.finish()
    assert isinstance(process.error, LeaseLost)
    assert requeued.append("checkpoint", {}).number == 2


def test_without_a_lease_nobody_writes_to_a_leased_log(local_store: Backend) -> None:
    log = open_log(local_store)
    assert log.append("stage", {}).lease == 0
    acquire(log, "a")
    with pytest.raises(LeaseLost):
        log.append("stage", {})
    assert log.append("pin", {}, lease=None).lease == 1, "on behalf of nobody: passes, at the log's lease"


def test_a_lease_that_was_never_taken_is_refused(local_store: Backend) -> None:
    log = open_log(local_store)
    with pytest.raises(StoreError, match="never gave out"):
        log.append("stage", {}, lease=1)
    with pytest.raises(StoreError, match="no entries of this kind"):
        acquire(Log(local_store, "datasets/d", DATASET_KINDS), "a")


def test_two_takers_at_once_get_different_leases(local_store: Backend) -> None:
    process = Process(local_store)
    process.start(lambda: acquire(Log(process.store, "runs/r", RUN_KINDS), "slow"))
    while process.call != "put_if_absent":
        process.step()
    quick = acquire(open_log(local_store), "quick")
    process.finish()
    slow = process.result
    assert (quick.number, slow.number) == (1, 2)
    with pytest.raises(LeaseLost):
        quick.append("stage", {})
    process.start(lambda: slow.append("stage", {}))
    process.finish()
    assert process.result.number == 2
