"""Which samples make a step, and which of them each data-parallel rank takes (design §7.7).

Step t takes the samples k in [κ(t), κ(t+1)), whatever the number of ranks. Inside a step samples are sorted
by (lane, source, k), and rank r of R takes slots [⌊rB/R⌋, ⌊(r+1)B/R⌋): so ranks mostly read different units,
shares differ by one row at most, and the ranks' rows together are always the same global batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.data.plan.plan import Samples

Numbers = NDArray[np.int64]


class BatchSchedule:
    """Rows of each step: a schedule of global batch sizes, for instance a ramp."""

    def __init__(self, schedule: Sequence[tuple[int, int]]) -> None:
        """(first step, global batch from there on), by ascending step, the first at step 0.

        Raises ConfigError otherwise, or for a batch below 1.
        """
        steps = [step for step, _ in schedule]
        if not schedule or steps[0] != 0 or steps != sorted(set(steps)) or min(b for _, b in schedule) < 1:
            raise ConfigError(
                "a batch schedule is a list of (step, global batch)",
                found=list(schedule),
                remedy="Begin at step 0, let steps ascend, and use batches of at least 1 row.",
            )
        self.schedule = tuple((int(step), int(batch)) for step, batch in schedule)
        """(first step, global batch)."""
        self._steps, self._sizes = (np.array(column, dtype=np.int64) for column in zip(*schedule, strict=True))
        ends = np.cumsum(np.diff(self._steps) * self._sizes[:-1], dtype=np.int64)
        self._firsts = np.concatenate((np.zeros(1, dtype=np.int64), ends))

    @overload
    def kappa(self, step: int) -> int: ...
    @overload
    def kappa(self, step: Numbers) -> Numbers: ...
    def kappa(self, step: int | Numbers) -> int | Numbers:
        """κ: first sample of a step."""
        part = np.searchsorted(self._steps, step, side="right") - 1
        first = self._firsts[part] + (step - self._steps[part]) * self._sizes[part]
        return int(first) if isinstance(step, int) else np.asarray(first)

    @overload
    def step_of(self, k: int) -> int: ...
    @overload
    def step_of(self, k: Numbers) -> Numbers: ...
    def step_of(self, k: int | Numbers) -> int | Numbers:
        """The step that takes sample k."""
        part = np.searchsorted(self._firsts, k, side="right") - 1
        step = self._steps[part] + (k - self._firsts[part]) // self._sizes[part]
        return int(step) if isinstance(k, int) else np.asarray(step)

    def batch(self, step: int) -> int:
        """Global batch of a step: rows over all ranks."""
        return int(self._sizes[np.searchsorted(self._steps, step, side="right") - 1])

    def forwards(self, step: int, dp_size: int, micro_batch: int | None) -> int:
        """Forwards that every rank runs in a step, with `micro_batch` rows each (None: its whole share)."""
        share = -(-self.batch(step) // dp_size)
        return 1 if micro_batch is None else -(-share // micro_batch)


def rank_share(global_batch: int, dp_rank: int, dp_size: int) -> tuple[int, int]:
    """Slots [first, stop) of a rank. Raises ConfigError unless 0 <= dp_rank < dp_size."""
    if not 0 <= dp_rank < dp_size:
        raise ConfigError(
            "dp_rank must lie in [0, dp_size)",
            found=(dp_rank, dp_size),
            remedy="Give both as the launcher set them: `read_world()` has them.",
        )
    return dp_rank * global_batch // dp_size, (dp_rank + 1) * global_batch // dp_size


def rank_slots(samples: "Samples", dp_rank: int, dp_size: int) -> NDArray[np.intp]:
    """Indexes of the rows of one step's samples that a rank takes, in the order of its slots."""
    first, stop = rank_share(len(samples.k), dp_rank, dp_size)
    order = np.lexsort((samples.k, samples.source, samples.lane))
    return order[first:stop]


def forward_slots(indexes: NDArray[np.intp], forwards: int, rows: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """A rank's rows spread over its forwards, shape (forwards, rows), and which of them are real.

    The rest are fillers, which repeat a row (index 0 if the rank has none) and must weigh nothing.
    Raises ConfigError if they do not fit.
    """
    places = forwards * rows
    if len(indexes) > places:
        raise ConfigError(
            "rows do not fit into the forwards",
            found=(len(indexes), forwards, rows),
            remedy="Give more forwards, or more rows each.",
        )
    filled = np.full(places, indexes[-1] if len(indexes) else 0, dtype=np.intp)
    filled[: len(indexes)] = indexes
    real = np.arange(places) < len(indexes)
    return filled.reshape(forwards, rows), real.reshape(forwards, rows)
