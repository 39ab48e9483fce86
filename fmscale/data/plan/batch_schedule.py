"""Schedule of global batches: step t takes the samples k in [κ(t), κ(t+1)), at any number of ranks."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fmscale.errors import ConfigError


class BatchSchedule:
    """Rows of each step: one global batch, or several for a ramp."""

    def __init__(self, schedule: Sequence[tuple[int, int]]) -> None:
        """`schedule`: (first step, global batch from that step on), by ascending step, beginning at step 0.

        Raises ConfigError for another schedule, or for a batch below 1.
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
    def kappa(self, step: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def kappa(self, step: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """κ: first sample of a step."""
        part = np.searchsorted(self._steps, step, side="right") - 1
        first = self._firsts[part] + (step - self._steps[part]) * self._sizes[part]
        return int(first) if isinstance(step, int) else np.asarray(first)

    def step_of(self, k: int) -> int:
        """The step that takes sample k."""
        part = np.searchsorted(self._firsts, k, side="right") - 1
        return int(self._steps[part] + (k - self._firsts[part]) // self._sizes[part])

    def batch(self, step: int) -> int:
        """Global batch of a step: rows over all ranks."""
        return int(self._sizes[np.searchsorted(self._steps, step, side="right") - 1])
