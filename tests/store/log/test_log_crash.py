"""A process killed before or after each single request of a commit, a retire, a collection, a lease: the last
commit stays readable, nothing partial is visible, and a repetition works."""

import uuid
from collections.abc import Callable

import pytest

from fmscale.errors import Conflict
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.log.retirement import collect_garbage, commit, pin, replay, retire
from fmscale.store.open import open_store
from tests.helpers.stepped import Process

LATER = 10_000_000_000.0


def references(entry: LogEntry) -> list[str]:
    return list(entry.body["names"])


def add(log: Log, name: str) -> LogEntry:
    names = [f"data/{name}/"]
    for key in ("a", "b"):
        log.backend.put(f"data/{name}/{key}", key.encode())
    return commit(log, "commit", {"names": names}, names, lease=None)


OPERATIONS: dict[str, Callable[[Log], object]] = {
    "commit": lambda log: add(log, "new"),
    "retire": lambda log: retire(log, [0], references),
    "pin": lambda log: pin(log, [1], "run"),
    "lease": lambda log: acquire(log, "run"),
    "collect": lambda log: collect_garbage(log, references, grace=0.0, now=LATER),
}


def open_log(store: Backend) -> Log:
    return Log(store, "runs/r", RUN_KINDS, readers=1)


def prepare(store: Backend) -> None:
    """Commits 0 to 2, with 2 retired."""
    log = open_log(store)
    for name in "012":
        add(log, name)
    retire(log, [2], references)


def whole_commits(store: Backend) -> list[int]:
    """The live commits; all their objects are there."""
    live = replay(open_log(store)).live
    for entry in live.values():
        for name in references(entry):
            assert [info.key for info in store.list_objects(name)] == [f"{name}a", f"{name}b"]
    return sorted(live)


@pytest.mark.parametrize("fate", ["killed_before", "killed_after"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_request(operation: str, fate: str) -> None:
    kills = 0
    while True:
        store = open_store(f"memory://{uuid.uuid4().hex}")
        prepare(store)
        process = Process(store)
        work = OPERATIONS[operation]
        process.start(lambda: work(open_log(process.store)))  # noqa: B023
        for _ in range(kills):
            if process.call is not None:
                process.step()
        if process.call is None:
            break
        request = process.call
        process.step(fate)
        assert process.killed
        kills += 1

        done = fate == "killed_after" and request == "put_if_absent" and operation != "collect"
        expected = {"commit": [0, 1, 4], "retire": [1]}.get(operation, [0, 1]) if done else [0, 1]
        assert whole_commits(store) == expected
        assert open_log(store).head() == (5 if done else 4)

        # The next process repeats it; only a retire that was already durable has nothing to do.
        if operation == "retire" and done:
            with pytest.raises(Conflict):
                work(open_log(store))
        else:
            work(open_log(store))
        whole_commits(store)
        collect_garbage(open_log(store), references, grace=0.0, now=LATER)
        assert "data/2/a" not in [info.key for info in store.list_objects("data")]
    assert kills >= 3
