"""The plan: samples as a function of k alone, through stages, bans and quarantines."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.order.mixture import integer_weights
from fmscale.data.order.order import Orders
from fmscale.data.plan.bans import Ban
from fmscale.data.plan.plan import NEVER, Plan, Samples, Source, Stage
from fmscale.errors import ConfigError, DataError
from tests.data.synthetic import synthetic_view

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "order_v1.json").read_text())
ROWS = {"a": (300, 77), "b": (41,), "c": (1000,), "d": (64, 0, 64)}


def source(name: str, weight: int = 2**32, seed: int = 0) -> Source:
    return Source(view=synthetic_view(ROWS[name], rows_per_unit=4, window=16, name=name), weight=weight, seed=seed)


def stage(from_k: int, **shares: float) -> Stage:
    weights = integer_weights(list(shares.values()))
    return Stage(from_k=from_k, sources=tuple(map(source, shares, weights)))


def ks(first: int, stop: int) -> np.ndarray:
    return np.arange(first, stop, dtype=np.uint64)


def unequal(one: Samples, other: Samples) -> np.ndarray:
    """Samples in which the two plans differ."""
    return np.asarray(np.any([np.asarray(a) != np.asarray(b) for a, b in zip(one, other, strict=True)], axis=0))


def following(plan: Plan, position: int) -> int:
    """Row of the first source at a position, where no ban holds."""
    row, _, _ = Orders(plan.orders).rows(np.array([0]), np.array([position], dtype=np.uint64))
    return int(row[0])


THREE = [stage(0, a=5, b=1), stage(700, a=2, c=3, b=1), stage(1500, c=1, d=1), stage(2000, a=1, d=9)]


def test_one_source_gives_every_row_once_an_epoch() -> None:
    plan = Plan([stage(0, a=1)])
    samples = plan.samples(ks(0, 3 * 377))
    for epoch in range(3):
        here = samples.epoch == epoch
        assert np.array_equal(np.sort(samples.row[here]), np.arange(377))
    assert np.array_equal(samples.position, samples.k)


def test_samples_do_not_depend_on_what_is_asked_with_them() -> None:
    plan = Plan(THREE, [Ban(source=0, rows=((10, 90),), from_k=300)])
    whole = plan.samples(ks(0, 3000))
    pick = np.random.default_rng(0).permutation(3000)
    scattered = plan.samples(pick.astype(np.uint64))
    for name in Samples._fields:
        assert np.array_equal(getattr(scattered, name), getattr(whole, name)[pick])
    assert plan.samples(ks(0, 0)).row.size == 0


def test_sources_go_on_where_they_were_through_stages() -> None:
    plan = Plan(THREE)
    samples = plan.samples(ks(0, 4000))
    assert [s.label for s in plan.sources] == ["a", "b", "c", "d"]
    for number in range(4):
        mine = samples.source == number
        assert np.array_equal(samples.position[mine], np.arange(mine.sum())), "no position twice, none left out"
        assert np.array_equal(plan.k_of(number, samples.position[mine]), samples.k[mine])
        for k in (0, 1, 699, 700, 701, 1500, 1999, 2000, 3999):
            assert plan.position(number, k) == mine[:k].sum()
    # b is in no stage from 1500 on.
    end = plan.position(1, 5000)
    assert plan.k_of(1, np.array([end - 1, end], dtype=np.uint64)).tolist() == [
        samples.k[samples.source == 1][-1],
        NEVER,
    ]


def test_a_later_stage_changes_nothing_before_it() -> None:
    short, long = Plan(THREE[:2]), Plan(THREE)
    assert not unequal(short.samples(ks(0, 1500)), long.samples(ks(0, 1500))).any()
    assert unequal(short.samples(ks(1500, 1600)), long.samples(ks(1500, 1600))).any()


def test_explicit_positions() -> None:
    first = Plan([stage(0, a=1)])
    at = first.next_stage(100, [source("a"), source("b")][:1]).positions
    assert at == (100,)
    moved = Plan([*first.stages, Stage(from_k=100, sources=(source("a"),), positions=(777,))])
    assert moved.samples(ks(100, 102)).position.tolist() == [777, 778]
    assert moved.position(0, 150) == 827


def test_a_source_that_a_stage_leaves_out_comes_no_more() -> None:
    plan = Plan([stage(0, a=3, b=1)])
    third = ks(2 * 41, 2 * 41 + 1)
    k = int(plan.k_of(1, third)[0])
    samples = plan.samples(ks(0, k + 1))
    assert samples.epoch[samples.source == 1].tolist() == [0] * 41 + [1] * 41 + [2]
    after = Plan([*plan.stages, plan.next_stage(k, [source("a")])])
    assert (after.samples(ks(k, 2000)).source == 0).all()
    assert after.k_of(1, third)[0] == NEVER


def test_next_use_in_samples() -> None:
    plan = Plan([stage(0, a=2, b=1)])
    units = plan.sources[0].view.units
    samples = plan.samples(ks(0, 3000))
    unit = units.unit_of(samples.row)[0]
    number = np.arange(units.n, dtype=np.uint64)
    use = plan.next_use(0, number, 333).astype(int)
    assert (use >= 333).all()
    # Rows in the place of a hole may come before their unit's window: at most 3 a commit and L = 16.
    early = 0
    for u in number.tolist():
        reads = samples.k[(samples.source == 0) & (unit == u) & (samples.k >= 333)]
        early += int(reads.min() < use[u])
    assert early <= 4


def test_digest_names_the_samples() -> None:
    base = Plan(THREE)
    assert base.digest == Plan(THREE).digest
    ban = Ban(source=0, rows=((0, 1),), from_k=5)
    others = [
        Plan(THREE[:3]),
        Plan([stage(0, a=5, b=2), *THREE[1:]]),
        Plan([Stage(from_k=0, sources=(source("a", seed=1),))]),
        Plan([Stage(from_k=0, sources=(source("a"),))]),
        Plan([Stage(from_k=0, sources=(source("a"),), positions=(1,))]),
        base.with_ban(ban),
        base.with_ban(Ban(source=0, rows=((0, 1),), from_k=6)),
        base.with_ban(ban).with_ban(ban),
    ]
    assert len({plan.digest for plan in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "begin at sample 0"),
        ([stage(5, a=1)], "begin at sample 0"),
        ([stage(0, a=1), stage(0, b=1)], "ascend"),
        ([stage(0, a=1), stage(9, a=1), stage(8, b=1)], "ascend"),
        ([Stage(from_k=0, sources=(source("a"), source("b")))], "sum 2\\^32"),
        ([Stage(from_k=0, sources=(source("a"), source("b", weight=0)))], "positive"),
        ([Stage(from_k=0, sources=(source("a", 2**31), source("a", 2**31)))], "twice"),
        ([Stage(from_k=0, sources=(source("a"),), positions=(1, 2))], "position for each"),
        ([Stage(from_k=0, sources=())], "not positive"),
    ],
)
def test_plans_that_cannot_be(stages: list[Stage], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        Plan(stages)


def test_a_ban_moves_nothing_else() -> None:
    base = Plan(THREE)
    before = base.samples(ks(0, 4000))
    plan = base.with_ban(Ban(source=0, rows=((10, 60), (200, 201)), from_k=900))
    after = plan.samples(ks(0, 4000))
    banned = (before.source == 0) & (((before.row >= 10) & (before.row < 60)) | (before.row == 200))
    assert np.array_equal(unequal(before, after), banned & (before.k >= 900))
    for name in ("source", "position", "epoch", "lane"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), f"{name} must stay"
    a = after.row[(after.source == 0) & (after.k >= 900)]
    assert not (((a >= 10) & (a < 60)) | (a == 200)).any()
    # The substitute is the end of the walk: sigma of the banned row, repeated.
    for k in np.flatnonzero(unequal(before, after))[:20].tolist():
        row, epoch = int(before.row[k]), int(before.epoch[k])
        while 10 <= row < 60 or row == 200:
            row = following(base, epoch * 377 + row)
        assert after.row[k] == row


def test_a_quarantine_holds_for_the_samples_it_names() -> None:
    base = Plan([stage(0, a=1)])
    before = base.samples(ks(0, 1200))
    bad = np.flatnonzero((before.row >= 30) & (before.row < 40))
    now, others = bad[bad < 600][::2], bad[bad < 600][1::2]
    plan = base.with_ban(Ban(source=0, rows=((30, 40),), from_k=600, samples=tuple(now.tolist())))
    changed = np.flatnonzero(unequal(before, plan.samples(ks(0, 1200))))
    assert set(changed.tolist()) == set(now.tolist()) | set(bad[bad >= 600].tolist())
    assert not set(changed.tolist()) & set(others.tolist())


def test_substitutes_are_judged_by_the_entries_up_to_their_own() -> None:
    base = Plan([stage(0, a=1)])
    before = base.samples(ks(0, 377))
    k = 50
    row = int(before.row[k])

    first = following(base, row)
    second = following(base, first)
    own = Ban(source=0, rows=((row, row + 1),), from_k=300, samples=(k,))
    also_first = Ban(source=0, rows=((first, first + 1),), from_k=300)
    at_k = np.array([k], dtype=np.uint64)
    assert base.with_ban(own).samples(at_k).row[0] == first
    # A sample delivered before the other entry does not change.
    assert base.with_ban(own).with_ban(also_first).samples(at_k).row[0] == first
    # The other entry came first, though it takes effect later: its row cannot be read.
    assert base.with_ban(also_first).with_ban(own).samples(at_k).row[0] == second
    # An entry that also names the sample changes it.
    named = Ban(source=0, rows=((first, first + 1),), from_k=300, samples=(k,))
    assert base.with_ban(own).with_ban(named).samples(at_k).row[0] == second


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6), st.integers(0, 60)), min_size=1, max_size=5),
)
def test_bans_end_on_an_allowed_row_of_the_smallest_views(rows: list[int], ranges: list[tuple[int, int, int]]) -> None:
    """The walk also ends in a circle of banned rows, which is common in views of a few rows."""
    total = sum(rows)
    bans = [
        Ban(source=0, rows=((first % total, min(first % total + width, total)),), from_k=from_k)
        for first, width, from_k in ranges
    ]
    named = {r for ban in bans for r in range(*ban.rows[0])}
    view = synthetic_view(tuple(rows), rows_per_unit=3, window=2)
    stages = [Stage(from_k=0, sources=(Source(view=view, weight=2**32, seed=3),))]
    if len(named) == total:
        with pytest.raises(DataError, match="leave no row"):
            Plan(stages, bans)
        return
    plain, samples = Plan(stages).samples(ks(0, 100)), Plan(stages, bans).samples(ks(0, 100))
    for k in range(100):
        held = {r for ban in bans if ban.from_k <= k for r in range(*ban.rows[0])}
        assert int(samples.row[k]) not in held
        if int(plain.row[k]) not in held:
            assert samples.row[k] == plain.row[k]


@pytest.mark.parametrize("rows", [((5, 5),), ((370, 378),), ((-1, 3),), ()])
def test_bans_of_rows_that_do_not_exist(rows: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(DataError, match="rows outside"):
        Plan([stage(0, a=1)], [Ban(source=0, rows=rows, from_k=0)])


def test_bans_of_sources_that_do_not_exist() -> None:
    with pytest.raises(DataError, match="source that the plan does not have"):
        Plan([stage(0, a=1)], [Ban(source=1, rows=((0, 1),), from_k=0)])


def test_which_rows_are_named() -> None:
    plan = Plan([stage(0, a=1, b=1)], [Ban(source=0, rows=((10, 20), (20, 25)), from_k=100, samples=(3,))])
    assert plan.quarantined(0, (10, 25))
    assert plan.quarantined(0, (24, 25))
    assert not plan.quarantined(0, (9, 11))
    assert not plan.quarantined(0, (24, 26))
    assert not plan.quarantined(1, (10, 11))


def test_occurrences_of_a_row() -> None:
    plan = Plan(
        THREE, [Ban(source=0, rows=((10, 60), (200, 230)), from_k=900), Ban(source=2, rows=((0, 5),), from_k=0)]
    )
    samples = plan.samples(ks(0, 5000))
    for number in (0, 1, 2):
        for row in (0, 5, 9, 10, 33, 40):
            expected = samples.k[(samples.source == number) & (samples.row == row)]
            assert np.array_equal(plan.occurrences(number, row, 5000), expected)


@pytest.mark.parametrize("sources", [1, 6])
def test_opening_and_seeking_hold_nothing_that_grows(sources: int) -> None:
    """Memory of a plan and of distant samples: equal at 10^6 and 10^12 rows (W3.plan: 5 MB)."""
    used = {}
    for rows in (10**6, 10**12):
        views = [synthetic_view((rows + i, 77), name=str(i)) for i in range(sources)]
        weights = integer_weights([1.0] * sources)
        stages = [
            Stage(
                from_k=0, sources=tuple(Source(view=v, weight=w, seed=1) for v, w in zip(views, weights, strict=True))
            )
        ]
        Plan(stages).samples(ks(0, 4096))
        tracemalloc.start()
        plan = Plan(stages)
        plan.samples(ks(rows // 2, rows // 2 + 4096))
        used[rows] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    for kept, peak in used.values():
        assert kept < 300_000
        assert peak < 5_000_000
    assert used[10**12][0] < 1.5 * used[10**6][0]


@pytest.mark.parametrize("rows", [(2,), (10**12,), tuple([10**9] * 100)])
def test_views_of_any_size_and_a_late_sample(rows: tuple[int, ...]) -> None:
    view = synthetic_view(rows)
    plan = Plan([Stage(from_k=0, sources=(Source(view=view, weight=2**32, seed=0),))])
    samples = plan.samples(np.array([2**60], dtype=np.uint64))
    assert samples.epoch[0] == 2**60 // sum(rows)
    assert samples.row[0] < sum(rows)


def test_golden_plan() -> None:
    case = GOLDEN["plan"]
    samples = Plan(THREE, [Ban(source=0, rows=((10, 60),), from_k=900, samples=(5, 17))]).samples(
        np.array(case["k"], dtype=np.uint64)
    )
    for name in ("source", "position", "row", "lane"):
        assert getattr(samples, name).tolist() == case[name], name
