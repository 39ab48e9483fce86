"""The vectorised assignment equals the definition of a step (docs/order.md), step by step."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmscale.data.order.mixture import integer_weights
from fmscale.data.plan.assign import Assignment, Share, assign
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan, Samples, Source, Stage
from tests.data.synthetic import synthetic_view

Schedule = list[tuple[int, int]]


def make_plan() -> Plan:
    weights = integer_weights([5, 2])
    views = synthetic_view((3000, 77), rows_per_unit=4, window=64), synthetic_view((500,), name="b")
    sources = tuple(Source(view=v, weight=w, seed=i) for i, (v, w) in enumerate(zip(views, weights, strict=True)))
    return Plan([Stage(from_k=0, sources=sources)])


PLAN = make_plan()


def samples_of(batches: BatchSchedule, step: int, k: int) -> Samples:
    """The samples of a step, without those before k."""
    return PLAN.samples(np.arange(max(k, batches.kappa(step)), batches.kappa(step + 1), dtype=np.uint64))


def rank_slots(samples: Samples, share: Share, forwards: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Indexes of the samples that a rank takes of a step, [forwards, width], and a mask of the real samples."""
    order = sorted(range(len(samples.k)), key=lambda i: (samples.lane[i], samples.source[i], samples.k[i]))
    first, stop = (rank * len(order) // share.dp_size for rank in (share.dp_rank, share.dp_rank + 1))
    slots = np.zeros(forwards * width, dtype=np.intp)
    slots[: stop - first] = order[first:stop]
    real = np.arange(len(slots)) < stop - first
    return slots.reshape(forwards, width), real.reshape(forwards, width)


def check(found: Assignment, batches: BatchSchedule, share: Share, k: int, steps: int) -> None:
    first = batches.step_of(k)
    sizes = [len(samples_of(batches, step, k).k) for step in range(first, first + steps)]
    width = share.micro_batch or max(-(-size // share.dp_size) for size in sizes)
    at = 0
    for step, size in zip(range(first, first + steps), sizes, strict=True):
        samples = samples_of(batches, step, k)
        forwards = math.ceil(math.ceil(size / share.dp_size) / width)
        slots, real = rank_slots(samples, share, forwards, width)
        here = slice(at, at + forwards)
        assert found.step[here].tolist() == [step] * forwards
        assert found.after[here].tolist() == [batches.kappa(step + 1)] * forwards
        assert found.last[here].tolist() == [False] * (forwards - 1) + [True]
        assert found.real[here].tolist() == real.sum(axis=1).tolist()
        for name in ("k", "source", "row"):
            expected = np.where(real, getattr(samples, name)[slots], 0)
            np.testing.assert_array_equal(getattr(found, name)[here], expected)
        at += forwards
    assert all(len(column) == at for column in found)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    starts = sorted({0, *draw(st.lists(st.integers(1, 12), max_size=3))})
    return [(start, draw(st.integers(1, 37))) for start in starts]


@settings(max_examples=25, deadline=None)
@given(schedules(), st.integers(1, 17), st.none() | st.integers(1, 9), st.integers(0, 200), st.integers(1, 9))
@example([(0, 3)], 8, None, 0, 4)
@example([(0, 4), (2, 31), (5, 2)], 3, 4, 5, 8)
def test_every_rank_gets_what_the_definition_says(
    schedule: Schedule, dp_size: int, micro_batch: int | None, k: int, steps: int
) -> None:
    batches = BatchSchedule(schedule)
    forwards, delivered = set(), []
    for dp_rank in range(dp_size):
        share = Share(dp_rank=dp_rank, dp_size=dp_size, micro_batch=micro_batch)
        found = assign(PLAN, batches, share, k=k, steps=steps)
        check(found, batches, share, k, steps)
        forwards.add(tuple(found.step.tolist()))
        real = np.arange(found.k.shape[1]) < found.real[:, None]
        delivered += found.k[real].tolist()
    assert len(forwards) == 1, "every rank runs the same forwards"
    assert sorted(delivered) == list(range(k, batches.kappa(batches.step_of(k) + steps)))


def test_ranks_read_different_units() -> None:
    batches = BatchSchedule([(0, 500)])
    units = []
    for rank in range(2):
        found = assign(PLAN, batches, Share(dp_rank=rank, dp_size=2, micro_batch=None), k=0, steps=1)
        rows = found.row[found.source == 0]
        units.append(set(PLAN.sources[0].view.units.unit_of(rows)[0].tolist()))
    assert len(units[0] & units[1]) <= 2


@pytest.mark.parametrize("dp_size", [1, 2, 3, 5, 8, 16])
def test_starting_in_the_middle_of_a_step_takes_what_is_left_of_it(dp_size: int) -> None:
    batches = BatchSchedule([(0, 10)])
    ranks = [
        assign(PLAN, batches, Share(dp_rank=r, dp_size=dp_size, micro_batch=2), k=27, steps=2) for r in range(dp_size)
    ]
    assert {tuple(rank.step.tolist()) for rank in ranks} == {tuple(ranks[0].step.tolist())}
    of_first = [
        k
        for rank in ranks
        for row, real, step in zip(rank.k, rank.real, rank.step, strict=True)
        for k in row[:real].tolist()
        if step == 2
    ]
    assert sorted(of_first) == [27, 28, 29]
    assert ranks[0].after[ranks[0].step == 2].tolist() == [30] * int((ranks[0].step == 2).sum())


def test_part_holds_the_forwards_of_its_steps() -> None:
    share = Share(dp_rank=1, dp_size=3, micro_batch=2)
    batches = BatchSchedule([(0, 10), (4, 23)])
    whole = assign(PLAN, batches, share, k=10, steps=7)
    check(whole.part(3, 6), batches, share, batches.kappa(3), 3)
    assert len(whole.part(8, 9).step) == 0
