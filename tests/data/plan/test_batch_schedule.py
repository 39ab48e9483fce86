"""Steps and ranks: the joined global batches are the same for any number of ranks, also on a ramp."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.data.order.mixture import integer_weights
from fmscale.data.plan.batch_schedule import BatchSchedule, forward_slots, rank_share, rank_slots
from fmscale.data.plan.plan import Plan, Source, Stage
from fmscale.errors import ConfigError
from tests.data.synthetic import synthetic_view

SIZES = (1, 2, 3, 5, 8, 16)


def plan() -> Plan:
    weights = integer_weights([5, 2])
    views = synthetic_view((3000, 77), rows_per_unit=4, window=64), synthetic_view((500,), name="b")
    sources = tuple(Source(view=v, weight=w, seed=i) for i, (v, w) in enumerate(zip(views, weights, strict=True)))
    return Plan([Stage(from_k=0, sources=sources)])


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 40)), min_size=1, max_size=5))
def test_kappa_and_its_inverse(parts: list[tuple[int, int]]) -> None:
    starts = np.cumsum([0] + [n for n, _ in parts[:-1]]).tolist()
    batches = BatchSchedule(list(zip(starts, (b for _, b in parts), strict=True)))
    sizes = [b for n, b in parts for _ in range(n)] + [parts[-1][1]] * 10
    first = np.cumsum([0, *sizes])
    steps = np.arange(len(sizes) + 1)
    assert np.array_equal(batches.kappa(steps), first)
    k = np.arange(first[-1])
    assert np.array_equal(batches.step_of(k), np.repeat(steps[:-1], sizes))
    assert [batches.batch(t) for t in range(len(sizes))] == sizes
    assert batches.kappa(3) == first[3]
    assert batches.step_of(int(first[3])) == 3


@pytest.mark.parametrize("schedule", [[(0, 16)], [(0, 7)], [(0, 4), (3, 9), (5, 31)]])
def test_any_number_of_ranks_joins_to_the_same_batches(schedule: list[tuple[int, int]]) -> None:
    run, batches = plan(), BatchSchedule(schedule)
    whole = run.samples(np.arange(batches.kappa(8), dtype=np.uint64))
    for dp_size in SIZES:
        delivered = []
        for step in range(8):
            samples = run.samples(np.arange(batches.kappa(step), batches.kappa(step + 1), dtype=np.uint64))
            slots = [rank_slots(samples, rank, dp_size) for rank in range(dp_size)]
            joined = np.concatenate(slots)
            assert np.array_equal(np.sort(joined), np.arange(batches.batch(step))), "no row twice, none lost"
            assert max(map(len, slots)) - min(map(len, slots)) <= 1
            forwards = batches.forwards(step, dp_size, 4)
            assert all(len(mine) <= 4 * forwards for mine in slots)
            delivered.append(samples.row[np.sort(joined)])
        assert np.array_equal(np.concatenate(delivered), whole.row)


def test_slots_are_sorted_by_lane_then_source_then_sample() -> None:
    samples = plan().samples(np.arange(500, dtype=np.uint64))
    slots = np.concatenate([rank_slots(samples, rank, 3) for rank in range(3)])
    keys = list(zip(samples.lane[slots], samples.source[slots], samples.k[slots], strict=True))
    assert keys == sorted(keys)
    # So ranks read different units: hardly any unit of a window is read by two ranks.
    unit = plan().sources[0].view.units.unit_of(samples.row)[0]
    owners = [
        set(unit[mine[samples.source[mine] == 0]].tolist())
        for mine in (rank_slots(samples, rank, 2) for rank in range(2))
    ]
    assert len(owners[0] & owners[1]) <= 2


def test_every_rank_runs_the_same_forwards() -> None:
    batches = BatchSchedule([(0, 10)])
    assert batches.forwards(0, 4, None) == 1
    assert batches.forwards(0, 4, 2) == 2
    assert batches.forwards(0, 16, 2) == 1
    real = 0
    for rank in range(4):
        first, stop = rank_share(10, rank, 4)
        indexes, valid = forward_slots(np.arange(first, stop), batches.forwards(0, 4, 2), 2)
        assert indexes.shape == valid.shape == (2, 2)
        assert indexes[valid].tolist() == list(range(first, stop))
        real += int(valid.sum())
    assert real == 10
    indexes, valid = forward_slots(np.arange(0), 1, 2)
    assert indexes.tolist() == [[0, 0]]
    assert not valid.any()
    with pytest.raises(ConfigError, match="fit"):
        forward_slots(np.arange(5), 2, 2)


@pytest.mark.parametrize("schedule", [[], [(1, 4)], [(0, 0)], [(0, 4), (0, 5)], [(0, 4), (5, 1), (3, 2)]])
def test_schedules_that_cannot_be(schedule: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError):
        BatchSchedule(schedule)


@pytest.mark.parametrize("place", [(-1, 2), (2, 2)])
def test_ranks_that_cannot_be(place: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        rank_share(8, *place)
