"""The log by itself: order, read-back, races, rechecks, damage. Faults are in test_log_machine."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

import pytest

from fmscale.errors import Conflict, CorruptData, FormatError, ObjectNotFound, StoreError, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.log.entry import FORMAT_VERSION
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import DATASET_KINDS, RUN_KINDS, Log
from tests.helpers.stepped import Process


def numbers(log: Log, start: int = 0) -> list[int]:
    return [entry.number for entry in log.entries(start)]


def filled(store: Backend, count: int, prefix: str = "datasets/a") -> Log:
    log = Log(store, prefix, RUN_KINDS)
    for number in range(count):
        log.append("commit", {"n": number})
    return log


def test_entries_come_back_as_appended(store: Backend) -> None:
    log = Log(store, "datasets/a", DATASET_KINDS)
    assert log.head() == 0
    assert numbers(log) == []
    body = {"text": "ü", "nested": {"list": [1, 2.5, None, True]}, "big": 2**53}
    written = [log.append(kind, body) for kind in ("commit", "pin", "retire")]
    fresh = Log(store, "datasets/a", DATASET_KINDS)
    assert list(fresh.entries()) == written
    assert fresh.head() == 3
    assert fresh.entry(1) == written[1]
    assert written[1].body == body
    assert [entry.kind for entry in fresh.entries(1)] == ["pin", "retire"]
    with pytest.raises(ObjectNotFound):
        fresh.entry(3)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 21])
def test_head_without_listing(local_store: Backend, count: int) -> None:
    filled(local_store, count)
    log = Log(local_store, "datasets/a", RUN_KINDS)
    before = local_store.requests.count.copy()
    assert log.head() == count
    assert local_store.requests.count.get("list", 0) == before.get("list", 0)
    asked = local_store.requests.count["head"] - before.get("head", 0)
    assert asked <= 2 * max(1, count).bit_length() + 3
    before = local_store.requests.count.copy()
    assert log.head() == count
    asked = local_store.requests.count["head"] - before["head"]
    assert asked == (1 if count else 2), "the known head is not searched again"


def test_append_costs_one_request_when_nobody_else_writes(local_store: Backend) -> None:
    log = filled(local_store, 3)
    before = local_store.requests.count.copy()
    log.append("commit", {})
    after = local_store.requests.count
    changed = {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}
    assert changed == {"put_if_absent": 1}


def test_long_log_is_read_in_order_by_many_readers(store: Backend) -> None:
    filled(store, 75)
    log = Log(store, "datasets/a", RUN_KINDS)
    assert [entry.body["n"] for entry in log.entries()] == list(range(75))
    assert numbers(log, 70) == [70, 71, 72, 73, 74]
    assert numbers(log, 75) == []


def test_racing_writers_make_one_line(store: Backend) -> None:
    writers, each = 8, 6
    barrier = Barrier(writers)

    def write(writer: int) -> list[tuple[int, str]]:
        log = Log(store, "runs/r", RUN_KINDS)
        barrier.wait()
        entries = [log.append("commit", {"writer": writer, "i": i}) for i in range(each)]
        return [(entry.number, entry.uuid) for entry in entries]

    with ThreadPoolExecutor(writers) as pool:
        acknowledged = [pair for pairs in pool.map(write, range(writers)) for pair in pairs]
    entries = list(Log(store, "runs/r", RUN_KINDS).entries())
    assert sorted(acknowledged) == [(entry.number, entry.uuid) for entry in entries]
    assert len(entries) == writers * each
    for writer in range(writers):
        mine = [entry.body["i"] for entry in entries if entry.body["writer"] == writer]
        assert mine == list(range(each)), "one writer's appends keep their order"


def test_one_log_object_in_many_threads(local_store: Backend) -> None:
    log = Log(local_store, "runs/r", RUN_KINDS)
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda i: log.append("commit", {"i": i}), range(40)))
    assert sorted(entry.number for entry in entries) == list(range(40)) == numbers(log)


@pytest.mark.parametrize("fate", ["lost_request", "lost_response", "twice", "late"])
def test_a_lost_or_repeated_request_appends_once(local_store: Backend, fate: str) -> None:
    filled(local_store, 2)
    process = Process(local_store)
    log = Log(process.store, "datasets/a", RUN_KINDS)
    process.start(lambda: log.append("commit", {"mine": True}))
    while process.call != "put_if_absent":
        process.step()
    process.step(fate)
    process.finish()
    for effect in process.late:
        effect()
    assert process.error is None
    entries = list(Log(local_store, "datasets/a", RUN_KINDS).entries())
    assert [entry.body for entry in entries] == [{"n": 0}, {"n": 1}, {"mine": True}]
    assert process.result == entries[2]


def test_an_outcome_that_stays_unknown_is_an_error(local_store: Backend) -> None:
    filled(local_store, 1)
    process = Process(local_store)
    log = Log(process.store, "datasets/a", RUN_KINDS)
    process.start(lambda: log.append("commit", {}))
    while not process.at_put():
        process.step()
    while process.call is not None:
        process.step("lost_request")
    assert isinstance(process.error, StoreUnavailable)
    assert "000000000001.json" in str(process.error)


def test_recheck_sees_every_entry_not_seen_before(local_store: Backend) -> None:
    log = filled(local_store, 3)
    process = Process(local_store)
    mine = Log(process.store, "datasets/a", RUN_KINDS)
    seen = []
    process.start(lambda: mine.append("commit", {}, base=1, recheck=lambda other: seen.append(other.number)))
    while process.call != "put_if_absent":
        process.step()
    log.append("pin", {})
    log.append("retire", {})
    process.finish()
    assert process.error is None
    assert seen == [1, 2, 3, 4]
    assert process.result.number == 5


def test_recheck_may_stop_the_append_or_change_its_body(local_store: Backend) -> None:
    filled(local_store, 2)

    def refuse(other: object) -> None:
        raise Conflict("does not fit", found=other)

    log = Log(local_store, "datasets/a", RUN_KINDS)
    with pytest.raises(Conflict):
        log.append("commit", {}, base=1, recheck=refuse)
    assert log.head() == 2
    entry = log.append("commit", {"seen": []}, base=0, recheck=lambda other: {"seen": [other.number]})
    assert entry.body == {"seen": [1]}
    assert entry.number == 2


def test_base_may_be_ahead_of_this_log_object(local_store: Backend) -> None:
    stale = filled(local_store, 1)
    filled(local_store, 4)
    called = []
    entry = stale.append("commit", {}, base=5, recheck=lambda other: called.append(other.number))
    assert entry.number == 5
    assert called == []


def test_unknown_kinds(local_store: Backend) -> None:
    later = Log(local_store, "datasets/a", RUN_KINDS | {"remark", "law"})
    later.append("remark", {"text": "skip me"}, skippable=True)
    log = Log(local_store, "datasets/a", RUN_KINDS)
    with pytest.raises(StoreError, match=r"no entries of this kind.*'remark'"):
        log.append("remark", {})
    assert [entry.kind for entry in log.entries()] == ["remark"]
    assert log.append("commit", {}).number == 1
    later.append("law", {})
    with pytest.raises(FormatError, match=r"must not skip.*'law'.*Upgrade"):
        numbers(log)
    with pytest.raises(FormatError):
        log.append("commit", {})


def rewrite(store: Backend, number: int, **changes: object) -> None:
    """Replace fields of a stored entry, with a matching digest."""
    key = f"datasets/a/log/{number:012d}.json"
    fields = json.loads(store.get(key)) | changes
    del fields["digest"]
    fields["digest"] = metadata_digest(canonical_json(fields))
    store.put(key, canonical_json(fields))


def test_a_newer_format_is_refused(local_store: Backend) -> None:
    filled(local_store, 2)
    rewrite(local_store, 1, format_version=FORMAT_VERSION + 1, body="of another form")
    log = Log(local_store, "datasets/a", RUN_KINDS)
    with pytest.raises(FormatError, match=rf"newer fmscale.*format_version {FORMAT_VERSION + 1}.*Upgrade"):
        numbers(log)


@pytest.mark.parametrize(
    "change",
    [
        {"body": []},
        {"epoch": -1},
        {"epoch": "1"},
        {"time": None},
        {"previous": 7},
        {"kind": []},
        {"format_version": "2"},
    ],
)
def test_a_field_of_another_type_is_damage_under_a_right_digest(
    local_store: Backend, change: dict[str, object]
) -> None:
    filled(local_store, 2)
    rewrite(local_store, 1, **change)
    with pytest.raises(CorruptData, match=r"000000000001.json is damaged"):
        numbers(Log(local_store, "datasets/a", RUN_KINDS))


@pytest.mark.parametrize("moved", [[0], [0, 1, 2]])
def test_entries_of_another_log_are_refused(store: Backend, moved: list[int]) -> None:
    filled(store, 3)
    filled(store, 1 if len(moved) == 1 else 3, prefix="datasets/b")
    for number in moved:
        store.put(f"datasets/b/log/{number:012d}.json", store.get(f"datasets/a/log/{number:012d}.json"))
    log = Log(store, "datasets/b", RUN_KINDS)
    for use in (lambda: numbers(log), lambda: log.append("commit", {})):
        with pytest.raises(CorruptData, match=r"b/log/\d+.json belongs to another log: found 'datasets/a'"):
            use()


@pytest.mark.parametrize("gone", [[0], [0, 1], [1, 2, 3, 4, 5, 6], [3], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_a_gap_of_any_length_is_found_before_a_write(store: Backend, gone: list[int]) -> None:
    filled(store, 9)
    for number in gone:
        store.delete(f"datasets/a/log/{number:012d}.json")
    store.put("datasets/a/log/000000000012.json.copy", b"no entry")
    before = store.requests.count["put_if_absent"]
    writes: list[Callable[[Log], object]] = [
        lambda log: log.check(),
        lambda log: acquire(log, "run"),
        lambda log: (list(log.entries()), log.append("pin", {})),
    ]
    for check in writes:
        with pytest.raises(CorruptData, match=rf"{gone[0]:012d}.json is missing although later ones exist"):
            check(Log(store, "datasets/a", RUN_KINDS))
    assert store.requests.count["put_if_absent"] == before
    assert Log(store, "datasets/a", RUN_KINDS).begun()


def test_a_lease_costs_one_listing_and_no_search(store: Backend) -> None:
    for count in (0, 9):
        filled(store, count, prefix=f"runs/{count}")
        before = store.requests.count.copy()
        assert acquire(Log(store, f"runs/{count}", RUN_KINDS), "run").number == 1
        changed = {kind: n - before.get(kind, 0) for kind, n in store.requests.count.items() if n != before.get(kind)}
        assert changed == {"list": 1, "put_if_absent": 1} | ({"get": 1} if count else {})


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_entry_is_seen(local_store: Backend, damage: str) -> None:
    filled(local_store, 3)
    key = "datasets/a/log/000000000001.json"
    data = local_store.get(key)
    at = data.index(b'"n":1') + 4
    local_store.put(
        key,
        {
            "flip": data[:at] + b"2" + data[at + 1 :],
            "cut": data[:-7],
            "empty": b"",
            "other": local_store.get("datasets/a/log/000000000000.json"),
        }[damage],
    )
    with pytest.raises(CorruptData, match=r"000000000001.json is damaged"):
        numbers(Log(local_store, "datasets/a", RUN_KINDS))


def test_a_replaced_entry_breaks_the_chain(local_store: Backend) -> None:
    filled(local_store, 3)
    rewrite(local_store, 1, body={"n": "forged"})
    with pytest.raises(CorruptData, match=r"000000000002.json does not follow"):
        numbers(Log(local_store, "datasets/a", RUN_KINDS))


@pytest.mark.parametrize("missing", range(9))
def test_a_missing_entry_is_named(local_store: Backend, missing: int) -> None:
    filled(local_store, 10)
    local_store.delete(f"datasets/a/log/{missing:012d}.json")
    with pytest.raises(CorruptData, match=rf"{missing:012d}.json is missing"):
        numbers(Log(local_store, "datasets/a", RUN_KINDS))


@pytest.mark.parametrize("missing", range(9))
def test_a_gap_is_never_filled(local_store: Backend, missing: int) -> None:
    filled(local_store, 10)
    key = f"datasets/a/log/{missing:012d}.json"
    local_store.delete(key)
    log = Log(local_store, "datasets/a", RUN_KINDS)
    with suppress(CorruptData):
        assert log.append("commit", {}).number == 10
    assert not local_store.exists(key)


def test_a_reader_that_knows_more_entries_sees_the_end_gone(local_store: Backend) -> None:
    log = filled(local_store, 3)
    local_store.delete("datasets/a/log/000000000002.json")
    with pytest.raises(CorruptData, match=r"000000000002.json is missing"):
        numbers(log)


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": {1, 2}}, {"x": b"raw"}])
def test_a_body_that_is_not_json_is_refused(local_store: Backend, body: dict[str, object]) -> None:
    log = Log(local_store, "datasets/a", RUN_KINDS)
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        log.append("commit", body)
    assert log.head() == 0
