"""Rows of a rank, for many steps at once: one vectorised call for thousands of samples."""

from typing import NamedTuple

import numpy as np

from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan


class Share(NamedTuple):
    """A rank's part of every step, and the size of its portions."""

    dp_rank: int
    """Place among the data-parallel ranks."""
    dp_size: int
    """Number of data-parallel ranks."""
    micro_batch: int | None
    """Rows of a forward; None: the rank's whole part of the step."""


class Assignment(NamedTuple):
    """A rank's rows in consecutive steps: F forwards of M rows each. Fillers are zero."""

    step: np.ndarray
    """int64 [F]: step of each forward."""
    real: np.ndarray
    """int64 [F]: real rows; the rest are fillers."""
    last: np.ndarray
    """bool [F]: last forward of its step."""
    k: np.ndarray
    """uint64 [F, M]: sample numbers."""
    source: np.ndarray
    """uint16 [F, M]: sources."""
    row: np.ndarray
    """uint64 [F, M]: row ids."""
    after: np.ndarray
    """uint64 [F]: first sample behind each forward's step."""

    def part(self, first: int, stop: int) -> "Assignment":
        """The forwards of steps [first, stop)."""
        cut = slice(*np.searchsorted(self.step, (first, stop)).tolist())
        return Assignment._make(column[cut] for column in self)


def assign(plan: Plan, schedule: BatchSchedule, share: Share, *, k: int, steps: int) -> Assignment:
    """The rows of a rank in `steps` steps from sample `k` on.

    The samples of a step are sorted by (lane, source, k), so that ranks mostly read different units, and rank r of R
    takes slots [⌊rB/R⌋, ⌊(r+1)B/R⌋). Shares differ by one row at most, and every rank gets the same number of forwards.
    """
    first = schedule.step_of(k)
    bounds = schedule.kappa(np.arange(first, first + steps + 1))
    bounds[0] = k  # after a change of the batch size, the step of k keeps its samples from k on
    sizes = np.diff(bounds)
    samples = plan.samples(np.arange(bounds[0], bounds[-1], dtype=np.uint64))
    step = np.repeat(np.arange(steps), sizes)
    by_slot = np.lexsort((samples.k, samples.source, samples.lane, step))
    slot = np.arange(len(step)) - np.repeat(bounds[:-1] - bounds[0], sizes)
    low = share.dp_rank * sizes // share.dp_size
    high = (share.dp_rank + 1) * sizes // share.dp_size
    in_share = (slot >= low[step]) & (slot < high[step])
    index, place, step = by_slot[in_share], (slot - low[step])[in_share], step[in_share]

    largest = -(-sizes // share.dp_size)
    width = share.micro_batch or int(largest.max())
    forwards = -(-largest // width)
    base = np.cumsum(forwards) - forwards
    forward = base[step] + place // width
    total = int(forwards.sum())

    def spread(values: np.ndarray) -> np.ndarray:
        grid = np.zeros((total, width), dtype=values.dtype)
        grid[forward, place % width] = values[index]
        return grid

    last = np.zeros(total, dtype=bool)
    last[base + forwards - 1] = True
    return Assignment(
        step=first + np.repeat(np.arange(steps), forwards),
        real=np.bincount(forward, minlength=total),
        last=last,
        k=spread(samples.k),
        source=spread(samples.source),
        row=spread(samples.row),
        after=np.repeat(bounds[1:], forwards),
    )
