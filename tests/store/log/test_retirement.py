"""Retirement, pins and deletion: unneeded objects go, needed objects stay, also beside other writers."""

import pytest

from fmscale.errors import Conflict, LeaseLost
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.log.retirement import collect_garbage, commit, pin, replay, retire, unpin
from tests.helpers.stepped import Process

GRACE = 3600.0
LATER = 10_000_000_000.0


def references(entry: LogEntry) -> list[str]:
    return list(entry.body["objects"])


def open_log(store: Backend) -> Log:
    return Log(store, "datasets/d", RUN_KINDS, readers=1)


def add(log: Log, *objects: str) -> int:
    """Store objects (two under a folder) and commit them."""
    for name in objects:
        keys = [name] if not name.endswith("/") else [f"{name}a", f"{name}b/c"]
        for key in keys:
            log.backend.put(key, b"data")
    return commit(log, "commit", {"objects": list(objects)}, objects).number


def stored(store: Backend) -> list[str]:
    return [info.key for info in store.list_objects("data")]


def collect(log: Log, **options: object) -> tuple[str, ...]:
    return collect_garbage(log, references, grace=GRACE, now=LATER, **options).objects  # type: ignore[arg-type]


def test_only_what_was_retired_goes_and_only_after_the_grace_time(store: Backend) -> None:
    log = open_log(store)
    first, second = add(log, "data/1/", "data/one"), add(log, "data/2/")
    assert collect(log) == ()
    entry = retire(log, [first], references, reason="superseded")
    assert sorted(replay(log).live) == [second]
    early = collect_garbage(log, references, grace=GRACE, now=entry.time + GRACE - 1)
    assert (early.objects, early.waiting, early.retires) == ((), (entry.number,), ())
    dry = collect_garbage(log, references, grace=GRACE, now=entry.time + GRACE, dry_run=True)
    assert dry.objects == ("data/1/a", "data/1/b/c", "data/one")
    assert (dry.bytes, dry.dry_run, dry.retires) == (12, True, (entry.number,))
    assert len(stored(store)) == 5
    done = collect_garbage(log, references, grace=GRACE, now=entry.time + GRACE)
    assert (done.objects, done.bytes, done.dry_run) == (dry.objects, dry.bytes, False)
    assert stored(store) == ["data/2/a", "data/2/b/c"]
    before = store.requests.count.get("list", 0)
    assert collect_garbage(log, references, grace=GRACE, now=LATER).retires == ()
    assert store.requests.count["list"] - before == 1, "what was worked off is not listed again"


def test_shared_objects_stay_until_their_last_commit_is_retired(memory_store: Backend) -> None:
    log = open_log(memory_store)
    first = add(log, "data/shared/", "data/old/")
    second = commit(log, "commit", {"objects": ["data/shared/a"]}, ["data/shared/a"]).number
    entry = retire(log, [first], references)
    assert (entry.body["objects"], entry.body["withheld"]) == (["data/old/"], ["data/shared/"])
    assert collect(log) == ("data/old/a", "data/old/b/c")
    entry = retire(log, [second], references)
    assert entry.body["objects"] == ["data/shared/", "data/shared/a"]
    collect(log)
    assert stored(memory_store) == []


def test_left_overs_that_were_never_committed(memory_store: Backend) -> None:
    log = open_log(memory_store)
    add(log, "data/used/")
    memory_store.put("data/abandoned/x", b"data")
    with pytest.raises(Conflict, match="a live commit needs"):
        retire(log, [], references, objects=["data/used/a"])
    retire(log, [], references, objects=["data/abandoned/"], reason="ingest given up")
    assert collect(log) == ("data/abandoned/x",)
    with pytest.raises(Conflict, match="were retired"):
        add(log, "data/abandoned/")


def test_a_pinned_commit_is_not_retired(memory_store: Backend) -> None:
    log = open_log(memory_store)
    number = add(log, "data/1/")
    pin(log, [number], "run a")
    pin(log, [number], "run b")
    unpin(log, [number], "run a")
    with pytest.raises(Conflict, match=r"pinned.*run b.*Unpin"):
        retire(log, [number], references)
    unpin(log, [number], "run b")
    retire(log, [number], references)
    for action in (pin, unpin):
        with pytest.raises(Conflict, match="no such commits are in use"):
            action(log, [number], "run a")
    with pytest.raises(Conflict, match="no such commits are in use"):
        retire(log, [number], references)


def test_a_retire_that_ignores_pins_has_no_effect(memory_store: Backend) -> None:
    log = open_log(memory_store)
    number = add(log, "data/1/")
    pin(log, [number], "run a")
    log.append("retire", {"commits": [number], "objects": ["data/1/"], "withheld": [], "reason": "careless"})
    report = collect_garbage(log, references, grace=0.0, now=LATER)
    assert (report.objects, report.spared) == ((), ("data/1/a", "data/1/b/c"))
    assert number in replay(log).live
    assert stored(memory_store) == ["data/1/a", "data/1/b/c"]


def test_a_retire_that_names_too_much_deletes_nothing_live(memory_store: Backend) -> None:
    log = open_log(memory_store)
    first = add(log, "data/1/")
    add(log, "data/2/")
    log.append("retire", {"commits": [first], "objects": ["data/"], "withheld": [], "reason": "careless"})
    report = collect_garbage(log, references, grace=0.0, now=LATER)
    assert report.objects == ("data/1/a", "data/1/b/c")
    assert report.spared == ("data/2/a", "data/2/b/c")


def race(store: Backend, work: object, meanwhile: object) -> Process:
    """Run `work` up to its put of a log entry, then `meanwhile`, then the rest of `work`."""
    process = Process(store)
    process.start(lambda: work(open_log(process.store)))  # type: ignore[operator]
    while process.call != "put_if_absent":
        process.step()
    meanwhile(open_log(store))  # type: ignore[operator]
    process.finish()
    return process


def test_a_commit_that_references_what_was_retired_meanwhile_is_refused(memory_store: Backend) -> None:
    number = add(open_log(memory_store), "data/1/")
    objects = ["data/1/a"]
    process = race(
        memory_store,
        lambda log: commit(log, "commit", {"objects": objects}, objects),
        lambda log: retire(log, [number], references),
    )
    assert isinstance(process.error, Conflict)
    assert process.error.found == objects
    assert replay(open_log(memory_store)).live == {}


def test_a_retire_keeps_what_was_committed_meanwhile(memory_store: Backend) -> None:
    number = add(open_log(memory_store), "data/1/")
    process = race(
        memory_store,
        lambda log: retire(log, [number], references),
        lambda log: commit(log, "commit", {"objects": ["data/1/a"]}, ["data/1/a"]),
    )
    assert process.error is None
    assert process.result.body["objects"] == []
    log = open_log(memory_store)
    assert collect(log) == ()
    retire(log, [number + 1], references)
    collect(log)
    assert stored(memory_store) == []


@pytest.mark.parametrize("pin_first", [True, False])
def test_a_pin_and_a_retire_at_once_have_one_winner(memory_store: Backend, pin_first: bool) -> None:
    number = add(open_log(memory_store), "data/1/")
    actions = [lambda log: pin(log, [number], "run"), lambda log: retire(log, [number], references)]
    first, second = actions if pin_first else actions[::-1]
    process = race(memory_store, second, first)
    assert isinstance(process.error, Conflict)
    assert (number in replay(open_log(memory_store)).live) == pin_first


def test_a_fenced_run_retires_nothing(memory_store: Backend) -> None:
    log = open_log(memory_store)
    zombie = acquire(log, "zombie")
    entry = commit(log, "checkpoint", {"objects": []}, [], lease=zombie.number)
    acquire(log, "requeued")
    with pytest.raises(LeaseLost):
        retire(log, [entry.number], references, lease=zombie.number)
    assert entry.number in replay(log).live


def test_a_kept_state_saves_reading_the_log_again(local_store: Backend) -> None:
    log = open_log(local_store)
    for number in range(20):
        add(log, f"data/{number}/")
    state = replay(log)
    before = local_store.requests.count["get"]
    for number in range(5):
        commit(log, "commit", {"objects": []}, [], state=state)
        retire(log, [number], lambda entry: [], state=state)
    assert local_store.requests.count["get"] == before
    assert (state.head, state.live) == (30, replay(log).live)
