"""Flat forwards with records that cannot be used: none is silent or shifts another, and the quarantine has a budget."""

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fmscale.data.flat_loader import FlatLoader
from fmscale.data.forward import FlatForward
from fmscale.data.open import open_flat_loader
from fmscale.data.plan.order_log import OrderLog, replay
from fmscale.data.plan.plan import Plan
from fmscale.data.reading.flat_planner import HORIZON_STEPS, REFRESH_STEPS
from fmscale.errors import CorruptData, DataError, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.log import RUN_KINDS, Log
from tests.data.test_flat_loader import samples
from tests.helpers.faulty_backend import Fault, FaultyBackend
from tests.helpers.own_specs import Fragile
from tests.helpers.record_datasets import add_sizes, record_dataset
from tests.helpers.segments import flip, truncate

FORWARD = 512
BATCH = 64
KINDS = ("decode", "bad", "", "oversized")
Delivered = dict[int, tuple[int, tuple[bytes, ...]]]
"""k -> (row, bytes of the sample)."""


def texts(count: int, bad: dict[str, int], longest: int = 200) -> list[str]:
    """Texts of 10 letters to `longest`; `bad` of each kind are among them, at random places."""
    rng = np.random.default_rng(0)
    out = [f"{i:05d} " + "x" * int(n) for i, n in enumerate(rng.integers(4, longest - 5, count))]
    places = iter(rng.permutation(count).tolist())
    for kind, number in bad.items():
        for place in [next(places) for _ in range(number)]:
            out[place] = {"": "", "oversized": "o" * 600}.get(kind, f"{kind} {out[place]}")
    return out


def dataset(store: Backend, lines: list[str], segments: int = 2, name: str = "texts") -> None:
    """Records with these texts, and their sizes under both specs."""
    tables = [pa.table({"text": list(part)}) for part in np.array_split(np.array(lines, dtype=object), segments)]
    made = record_dataset(store, name, tables)
    for spec in (Fragile(), Fragile(fails=False)):
        add_sizes(made, spec, tables)


def flat(store: Backend, **options: Any) -> FlatLoader:
    given = {
        "forward_tokens": 2048,
        "sample_tokens": FORWARD,
        "batch": BATCH,
        "dataset": "texts",
        "spec": Fragile(),
        "threads": 2,
    }
    return open_flat_loader(store, **{**given, **options})


def steps(loader: FlatLoader) -> Iterator[list[FlatForward]]:
    """The forwards of each step."""
    while True:
        step = [next(loader)]
        while not step[-1].last_of_step:
            step.append(next(loader))
        yield step


def content(forwards: list[FlatForward]) -> Delivered:
    rows = {int(k): int(row) for forward in forwards for k, row in zip(forward.k, forward.row, strict=True)}
    return {k: (rows[k], found) for k, found in samples(forwards).items()}


def run(loaders: list[FlatLoader], count: int) -> Delivered:
    """Samples of `count` steps of ranks that take a step at a time, as training does."""
    out: Delivered = {}
    iterators = [steps(loader) for loader in loaders]
    for _ in range(count):
        each = [next(one) for one in iterators]
        assert len({len(step) for step in each}) == 1, "forwards of the ranks"
        found = content([forward for step in each for forward in step])
        assert not out.keys() & found.keys()
        out |= found
    for loader in loaders:
        loader.close()
    return out


def ranks(store: Backend, size: int, **options: Any) -> list[FlatLoader]:
    return [flat(store, dp_rank=rank, dp_size=size, nodes=size, **options) for rank in range(size)]


def check(broken: Delivered, whole: Delivered, plan: Plan) -> set[int]:
    """Nothing but the samples of named rows differs, and these are empty or replaced; the named rows."""
    named = {row for ban in plan.bans for first, stop in ban.rows for row in range(first, stop)}
    planned = plan.samples(np.array(sorted(broken), dtype=np.uint64))
    lost = dict(zip(planned.k.tolist(), plan.lost(planned).tolist(), strict=True))
    rows = dict(zip(planned.k.tolist(), planned.row.tolist(), strict=True))
    assert broken.keys() == whole.keys()
    for k, (row, found) in broken.items():
        assert row == rows[k]
        assert (row in named) == lost[k]
        if lost[k]:
            assert not any(found), "a lost sample has no content"
        if whole[k][0] not in named:
            assert (row, found) == whole[k]
    return named


def order_plan(store: Backend, name: str = "r") -> Plan:
    plan = replay(Log(store, f"runs/{name}", RUN_KINDS))
    assert plan is not None
    return plan


def test_of_200_bad_records_none_is_silent_and_none_shifts_another(memory_store: Backend) -> None:
    lines = texts(600, dict.fromkeys(KINDS, 50))
    dataset(memory_store, lines)
    count = HORIZON_STEPS + 8
    whole = run(ranks(memory_store, 1, spec=Fragile(fails=False)), count)
    broken = run(ranks(memory_store, 2, run="r"), count)
    plan = order_plan(memory_store)
    named = check(broken, whole, plan)
    assert named == {i for i, line in enumerate(lines) if line.startswith(("decode", "bad"))}
    excluded = {row for first, stop in plan.stages[0].excluded[0] for row in range(first, stop)}
    assert excluded == {i for i, line in enumerate(lines) if not 0 < len(line) <= FORWARD}
    assert not excluded & {row for row, _ in broken.values()}
    assert all(ban.reason for ban in plan.bans)
    again = run(ranks(memory_store, 3, run="r"), count)
    assert again == broken


def keys(store: Backend, part: str) -> list[str]:
    return sorted(info.key for info in store.list_objects("datasets/texts/segments") if part in info.key)


def middle(part: str) -> Callable[[Backend], None]:
    def damage(store: Backend) -> None:
        key = keys(store, part)[0]
        flip(store, key, store.head(key).bytes // 2)

    return damage


def cut(store: Backend) -> None:
    truncate(store, keys(store, "/records/")[0], 50_000)


def remove(store: Backend) -> None:
    store.delete(keys(store, "/records/")[0])


DAMAGES = {
    **{name: middle(part) for name, part in (
        ("records", "/records/"), ("index", "/batches/c"), ("ids", "/document_ids/c"),
        ("seal", "seal.json"), ("checksums", "checksums.arrow"),
    )},
    "cut": cut,
    "removed": remove,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_of_every_object_is_quarantined_and_nothing_else_moves(memory_store: Backend, name: str) -> None:
    dataset(memory_store, texts(240, {}, longest=1000))
    options: dict[str, Any] = {
        "batch": 48,
        "quarantine_share": 0.7,
        "document_ids": True,
        "sample_tokens": 1024,
        "forward_tokens": 2**15,
    }
    whole = run([flat(memory_store, **options)], 8)
    DAMAGES[name](memory_store)
    broken = run([flat(memory_store, run="r", **options)], 8)
    named = check(broken, whole, order_plan(memory_store))
    assert named
    assert named <= set(range(120)), "rows of the damaged segment"
    assert (len(named) < 120) == (name in ("records", "cut")), "the rest is good"
    again = run([flat(memory_store, run="r", **options)], 8)
    assert again == broken


def test_text_that_is_no_text_costs_its_record_alone(memory_store: Backend) -> None:
    lines = texts(60, {})
    dataset(memory_store, lines)
    tables = [pa.table({"text": lines})]
    spoiled = pa.array([b"\xff" * len(line) if i == 7 else line.encode() for i, line in enumerate(lines)]).view(
        pa.utf8()
    )
    add_sizes(record_dataset(memory_store, "spoiled", [pa.table({"text": spoiled})]), Fragile(), tables)
    run([flat(memory_store, run="r", dataset="spoiled", batch=10)], 12)
    assert [ban.rows for ban in order_plan(memory_store).bans] == [((7, 8),)]


def test_damage_without_a_run_stops_and_names_the_object(memory_store: Backend) -> None:
    dataset(memory_store, texts(600, {}))
    remove(memory_store)
    with pytest.raises(CorruptData, match=keys(memory_store, "checksums")[0].split("/checksums")[0]):
        run([flat(memory_store)], 20)


@pytest.mark.parametrize("word", ["bug", "long", "short", "lacking"])
def test_a_fault_of_the_spec_stops_names_the_record_and_ends_the_threads(memory_store: Backend, word: str) -> None:
    lines = texts(200, {word: 1})
    dataset(memory_store, lines)
    gc.collect()
    before = set(threading.enumerate())
    row = next(i for i, line in enumerate(lines) if line.startswith(word))
    loader = flat(memory_store, run="r")
    with pytest.raises(DataError, match=rf"row {row} of source 0"):
        run([loader], 10)
    assert set(threading.enumerate()) <= before
    assert not order_plan(memory_store).bans


def test_a_run_stops_beyond_its_budget_and_warns_at_the_first_row(
    memory_store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    dataset(memory_store, texts(1200, {"decode": 300}))
    options = {"batch": 128, "forward_tokens": 4096}
    with pytest.raises(DataError, match=r"(25[789]|2[678]\d) of the 1200 rows of texts .* the budget of 256") as caught:
        run([flat(memory_store, run="r", **options)], 20)
    assert "decode" in str(caught.value.__cause__)
    assert "quarantine_share" in caught.value.remedy
    assert "cannot be used and are left out" in caplog.records[0].getMessage()
    named = {first for ban in order_plan(memory_store).bans for first, _ in ban.rows}
    assert len(named) <= 256
    run([flat(memory_store, run="other", quarantine_share=0.25, **options)], 12)
    assert len({row for ban in order_plan(memory_store, "other").bans for row in ban.rows}) == 300


def test_a_row_counts_once_in_the_budget_however_often_it_comes(memory_store: Backend) -> None:
    """The horizon has 64 steps, 14 epochs of these records: blocks that were planned before an entry have its rows."""
    dataset(memory_store, texts(300, {"decode": 140}))
    run(ranks(memory_store, 1, run="r"), 12)
    assert sum(len(ban.rows) for ban in order_plan(memory_store).bans) == 140
    loader = flat(memory_store, run="s")
    assert loader._order_log is not None
    for _ in range(3):  # as ranks do that meet them at the same time
        loader._order_log.quarantine(source=0, rows=((0, 200),), from_k=10_000, samples=[9999])
    run([loader], 3)


def test_an_unavailable_store_reaches_the_consumer_who_may_go_on(memory_store: Backend) -> None:
    dataset(memory_store, texts(600, {}))
    whole = run([flat(memory_store)], 12)
    gc.collect()
    before = set(threading.enumerate())
    store = FaultyBackend(memory_store)
    loader = flat(store)
    store.inject(Fault.UNAVAILABLE, "read_into", "/records/")
    with pytest.raises(StoreUnavailable):
        next(loader)
    assert set(threading.enumerate()) <= before
    assert run([loader], 12) == whole


@pytest.mark.slow
def test_ranks_that_quarantine_at_once_or_read_late_deal_alike(
    memory_store: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 reads no entry of the others until the last moment; both find bad rows in the same steps."""
    lines = texts(400, {"decode": 40})
    dataset(memory_store, lines)
    refresh, late = OrderLog.refresh, []

    def refresh_late(log: OrderLog) -> Plan:
        if threading.current_thread().name == "fmscale-plan" and log in late and loaders[1].k < slow * BATCH:
            return log.plan
        return refresh(log)

    slow = HORIZON_STEPS - 2 * 7 - REFRESH_STEPS
    monkeypatch.setattr(OrderLog, "refresh", refresh_late)
    loaders = ranks(memory_store, 3, run="r")
    late += [loaders[1]._order_log]
    count = HORIZON_STEPS + 24
    broken = run(loaders, count)
    monkeypatch.undo()
    whole = run(ranks(memory_store, 1, spec=Fragile(fails=False)), count)
    named = check(broken, whole, order_plan(memory_store))
    assert named == {i for i, line in enumerate(lines) if line.startswith("decode")}
