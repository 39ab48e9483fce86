"""Schedules of batches: κ, its inverse, and schedules that are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.errors import ConfigError


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 40)), min_size=1, max_size=5))
def test_kappa_and_its_inverse(parts: list[tuple[int, int]]) -> None:
    starts = np.cumsum([0] + [n for n, _ in parts[:-1]]).tolist()
    schedule = BatchSchedule(list(zip(starts, (b for _, b in parts), strict=True)))
    sizes = [b for n, b in parts for _ in range(n)] + [parts[-1][1]] * 10
    first = np.cumsum([0, *sizes])
    steps = np.arange(len(sizes) + 1)
    assert np.array_equal(schedule.kappa(steps), first)
    assert [schedule.step_of(k) for k in first[:-1].tolist()] == steps[:-1].tolist()
    assert [schedule.step_of(k - 1) for k in first[1:].tolist()] == steps[:-1].tolist()
    assert [schedule.batch(t) for t in range(len(sizes))] == sizes
    assert schedule.kappa(3) == first[3]


@pytest.mark.parametrize("schedule", [[], [(1, 4)], [(0, 0)], [(0, 4), (0, 5)], [(0, 4), (5, 1), (3, 2)]])
def test_schedules_that_cannot_be(schedule: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError):
        BatchSchedule(schedule)
