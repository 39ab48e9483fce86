"""Numbers that ranks exchange in a step, on the host."""

from dataclasses import dataclass

import torch
from torch import distributed

from fmscale.runtime.axes import Axis
from fmscale.runtime.stop import Stop

REASONS = [reason for reason in Stop if reason]
"""Reasons to stop, the weakest first."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a step, the same on every rank."""

    count: float
    """Weight of the step's targets, over all ranks."""
    stop: Stop
    """The strongest reason that any rank has to stop before this step."""
    save: bool
    """True if a save is due after this step by the clock of any rank."""
    failed: bool = False
    """True if a rank has no rows for this step."""


class Exchange:
    """One sum over all ranks: a step's count, a number for each reason to stop, the wishes to save, the failures.

    It runs over gloo, also on GPUs, so that no rank waits for a device; between `start` and `finish` the rank works.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers
        alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        self._work = None if alone else distributed.all_reduce(numbers, async_op=True)

    @classmethod
    def start(cls, count: float, stop: Stop, *, save: bool, failed: bool = False) -> "Exchange":
        """Send this rank's part of the step's count, its reason to stop, its wish to save, and its failure."""
        slots = [float(stop is reason) for reason in REASONS]
        return cls(torch.tensor([count, *slots, float(save), float(failed)], dtype=torch.float64))

    def finish(self) -> Facts:
        """Wait for the facts of all ranks; a second call has them."""
        work, self._work = self._work, None
        if work is not None:
            work.wait()
        count, *slots, save, failed = self._numbers.tolist()
        reasons = [reason for reason, ranks in zip(REASONS, slots, strict=True) if ranks]
        return Facts(count=count, stop=max(reasons, default=Stop.NO), save=bool(save), failed=bool(failed))


def total(values: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Sum over the ranks of an axis of a host tensor, fp64. Logging sums the losses of several steps at once."""
    values = values.detach().to("cpu", torch.float64)
    if axis.size > 1:
        distributed.all_reduce(values, group=axis.group)
    return values
