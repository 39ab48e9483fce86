"""The order log: a replay of its entries gives the same samples to any reader at any time."""

import numpy as np
import pytest

from fmscale.data.plan.bans import Ban
from fmscale.data.plan.order_log import OrderLog, bans_of, replay
from fmscale.data.plan.plan import Plan, Source, Stage
from fmscale.data.views.token_view import make_view
from fmscale.errors import ConfigError, Conflict, DataError, FormatError, LeaseLost
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.log.retirement import commit, retire
from fmscale.store.log.retirement import replay as retirement
from tests.data.synthetic import synthetic_view
from tests.helpers.segments import documents, write_commit

K = np.arange(4000, dtype=np.uint64)
HALF = 2**31


def source(name: str, weight: int = 2**32, rows: tuple[int, ...] = (300, 77)) -> Source:
    return Source(view=synthetic_view(rows, rows_per_unit=4, window=16, name=name), weight=weight, seed=5)


def run_log(store: Backend) -> Log:
    return Log(store, "runs/one", RUN_KINDS)


def assert_same(one: Plan | None, other: Plan | None) -> None:
    assert one is not None
    assert other is not None
    assert one.digest == other.digest
    assert one.log_head == other.log_head
    assert np.array_equal(np.array(one.samples(K)), np.array(other.samples(K)))


def test_replay_gives_the_same_samples(store: Backend) -> None:
    log = OrderLog(run_log(store))
    log.start([source("a")])
    log.add_stage(500, [source("a", HALF), source("b", HALF)])
    log.ban(0, [(0, 9)], 800, "a person asked")
    log.log.append("checkpoint", {"step": 3})
    log.quarantine(source=1, rows=((5, 8),), from_k=900, samples=[510, 520])
    log.add_stage(1500, [source("b", HALF), source("c", HALF, (99,))])
    assert_same(replay(run_log(store)), log.plan)
    assert_same(OrderLog(run_log(store)).plan, log.plan)
    assert log.plan.log_head == 6
    assert [stage.from_k for stage in log.plan.stages] == [0, 500, 1500]
    assert [ban.reason for ban in log.plan.bans] == ["a person asked", ""]


def test_a_reader_in_the_middle_catches_up(memory_store: Backend) -> None:
    writer = OrderLog(run_log(memory_store))
    writer.start([source("a")])
    reader = OrderLog(run_log(memory_store))
    before = reader.plan
    head = before.log_head
    writer.add_stage(500, [source("b")])
    writer.ban(1, [(3, 5)], 700)
    assert_same(reader.refresh(), writer.plan)
    assert_same(replay(run_log(memory_store), head=head), before)
    assert_same(replay(run_log(memory_store), head=head, plan=writer.plan), before)
    with pytest.raises(DataError, match="shorter than the state"):
        replay(run_log(memory_store), head=9)


def test_views_are_written_out_once(memory_store: Backend) -> None:
    log = OrderLog(run_log(memory_store))
    log.start([source("a")])
    log.add_stage(10, [source("a", HALF), source("b", HALF)])
    views = [set(entry.body["views"]) for entry in run_log(memory_store).entries()]
    assert [len(found) for found in views] == [1, 1]
    assert not views[0] & views[1]


def test_a_run_without_a_stage(memory_store: Backend) -> None:
    log = OrderLog(run_log(memory_store))
    assert replay(run_log(memory_store)) is None
    with pytest.raises(DataError, match="has no stage"):
        _ = log.plan


def test_two_who_begin_or_change_a_run_at_once(memory_store: Backend) -> None:
    one, two = OrderLog(run_log(memory_store)), OrderLog(run_log(memory_store))
    one.start([source("a")])
    with pytest.raises(Conflict, match="another stage"):
        two.start([source("b")])
    two.refresh()
    one.add_stage(100, [source("b")])
    with pytest.raises(Conflict, match="another stage"):
        two.add_stage(200, [source("c")])
    two.refresh()
    two.add_stage(200, [source("c")])
    assert len(one.refresh().stages) == 3


def test_quarantines_of_two_ranks_at_once(memory_store: Backend) -> None:
    """Both entries are recorded; substitutes of the second also avoid rows of the first."""
    OrderLog(run_log(memory_store)).start([source("a")])
    one, two = OrderLog(run_log(memory_store)), OrderLog(run_log(memory_store))
    plain = one.plan
    row = int(plain.samples(K).row[50])
    (following,) = plain.samples(np.array([row], dtype=np.uint64)).row.tolist()
    first = one.quarantine(source=0, rows=((following, following + 1),), from_k=900)
    second = two.quarantine(source=0, rows=((row, row + 1),), from_k=900, samples=[50])
    assert len(second.bans) == 2
    assert second.samples(K[50:51]).row[0] not in (row, following)
    assert first.samples(K[50:51]).row[0] == row
    assert_same(one.refresh(), two.plan)


def test_what_cannot_be_is_not_recorded(memory_store: Backend) -> None:
    log = OrderLog(run_log(memory_store))
    log.start([source("a")])
    with pytest.raises(DataError):
        log.ban(0, [(0, 377)], 5)
    with pytest.raises(ConfigError):
        log.add_stage(0, [source("b")])
    with pytest.raises(ConfigError):
        log.add_stage(9, [source("b", 5)])
    assert run_log(memory_store).head() == 1


def test_a_run_that_lost_its_lease_cannot_change_the_order(memory_store: Backend) -> None:
    held = acquire(run_log(memory_store), "first")
    log = OrderLog(run_log(memory_store), lease=held.number)
    log.start([source("a")])
    log.ban(0, [(0, 9)], 700)
    acquire(run_log(memory_store), "second")
    with pytest.raises(LeaseLost):
        log.ban(0, [(0, 9)], 800)


def test_entries_of_a_newer_fmscale(memory_store: Backend) -> None:
    log = OrderLog(run_log(memory_store))
    log.start([source("a")])
    log.log.append("ban", {"format_version": 2})
    with pytest.raises(FormatError, match=r"log entry 1.*format_version"):
        log.refresh()


def test_a_view_that_was_changed_in_the_log(memory_store: Backend) -> None:
    log = run_log(memory_store)
    OrderLog(log).start([source("a")])
    body = log.entry(0).body
    (view,) = body["views"].values()
    view["window"] += 1
    other = Log(memory_store, "runs/two", RUN_KINDS)
    other.append("stage", body)
    with pytest.raises(DataError, match="does not match its digest"):
        OrderLog(other)


def test_a_ban_of_documents(memory_store: Backend) -> None:
    """No source of the dataset delivers a row with a token of these documents any more."""
    docs = [documents([40, 3, 100, 30, 60], seed=seed) for seed in (1, 2)]
    write_commit(memory_store, "corpus", {"train": docs})
    dataset = open_dataset(memory_store, "corpus")
    views = [make_view(dataset, sequence_length=length, rows_per_unit=2) for length in (8, 11)]
    log = OrderLog(run_log(memory_store))
    log.start([Source(view=view, weight=HALF, seed=0) for view in views])
    banned = [docs[0][2], docs[1][0]]
    plan = log.ban_documents(dataset, [doc.id for doc in banned], 100)
    tokens = np.concatenate([doc.tokens for unit in docs for doc in unit])
    gone = np.isin(tokens, np.concatenate([doc.tokens for doc in banned]))
    samples = plan.samples(K)
    for number, view in enumerate(views):
        rows = np.any(gone[: view.rows[0] * view.sequence_length].reshape(-1, view.sequence_length), axis=1)
        mine = np.asarray(samples.source == number)
        held = np.asarray(rows)[samples.row[mine].astype(int)]
        assert not held[samples.k[mine] >= 100].any()
        assert set(samples.row[mine & (samples.k >= 100)].tolist()) == set(np.flatnonzero(~rows).tolist())
        assert held[samples.k[mine] < 100].any()
    with pytest.raises(DataError, match="no source of the run has a row"):
        log.ban_documents(dataset, [b"x" * 16], 100)


def test_bans_survive_json() -> None:
    ban = Ban(source=1, rows=((0, 5), (7, 8)), from_k=9, samples=(1, 2), reason="x")
    plan = Plan([Stage(from_k=0, sources=(source("a", HALF), source("b", HALF)))], [ban])
    assert Ban.from_json(plan.bans[0].to_json()) == ban


def test_a_step_back_bans_rows_and_retires_checkpoints_in_one_entry(memory_store: Backend) -> None:
    """A kill behind this entry finds both, a kill before it neither."""
    log = OrderLog(run_log(memory_store))
    log.start([source("a", HALF), source("b", HALF)])
    for step in (1, 2, 3):
        commit(log.log, "checkpoint", {"step": step}, [f"{step}/"])
    bans = bans_of(log.plan, range(20, 40), 20, "a spike")
    assert [ban.source for ban in bans] == [0, 1]
    facts = {"format_version": 1, "bans": [ban.to_json() for ban in bans]}
    retire(log.log, [2, 3], lambda entry: [f"{entry.body['step']}/"], back=facts)
    plan = replay(run_log(memory_store))
    assert plan is not None
    assert (plan.bans, plan.spikes, plan.log_head) == (tuple(bans), 1, 5)
    state = retirement(run_log(memory_store))
    assert list(state.live) == [1]
    assert state.dead.touches("3/x")
    before, after = log.plan.samples(K), plan.samples(K)
    assert np.array_equal(before.row[:20], after.row[:20])
    banned = set(zip(before.source[20:40].tolist(), before.row[20:40].tolist(), strict=True))
    assert not banned & set(zip(after.source[20:].tolist(), after.row[20:].tolist(), strict=True))
    assert np.array_equal(before.lane, after.lane)


def test_a_skipped_step_is_skipped_until_its_samples_change(memory_store: Backend) -> None:
    log = OrderLog(run_log(memory_store))
    log.start([source("a")])
    for first in (6, 12, 18):
        log.log.append("skip", {"format_version": 1, "step": first // 6, "samples": [first, first + 6]})
    assert log.refresh().skips == {range(6, 12), range(12, 18), range(18, 24)}
    assert log.ban(0, [(3, 5)], 17).skips == {range(6, 12)}
    assert (log.plan.spikes, log.plan.with_ban(log.plan.bans[0]).spikes) == (3, 3)


def test_bans_of_samples_are_of_the_dataset_that_is_asked_for(memory_store: Backend) -> None:
    log = OrderLog(run_log(memory_store))
    log.start([source("a", HALF), source("b", HALF)])
    [ban] = bans_of(log.plan, range(10), 50, "", "b")
    samples = log.plan.samples(np.arange(10, dtype=np.uint64))
    rows = {row for first, stop in ban.rows for row in range(first, stop)}
    assert (ban.source, ban.from_k, rows) == (1, 50, set(samples.row[samples.source == 1].tolist()))
    with pytest.raises(DataError, match="Datasets of the run: a, b"):
        bans_of(log.plan, range(10), 50, "", "c")
