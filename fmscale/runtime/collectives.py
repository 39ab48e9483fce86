"""Numbers that ranks exchange in a step, on the host."""

from dataclasses import dataclass

import torch
from torch import distributed

from fmscale.runtime.stop import Stop


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a step, the same on every rank."""

    tokens: float
    """Valid tokens of the step, over all ranks."""
    stop: Stop
    """The strongest reason that any rank has to stop before this step."""
    save: bool
    """True if a save is due after this step by the clock of any rank."""


def exchange(tokens: float, stop: Stop, save: bool) -> Facts:
    """Sum of the ranks' valid tokens, the strongest of their reasons to stop, and True if any rank wants a save.

    One gather over gloo, also on GPUs, so that no rank waits for a device.
    """
    numbers = torch.tensor([tokens, float(stop), float(save)], dtype=torch.float64)
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return Facts(tokens=tokens, stop=stop, save=save)
    parts = [torch.empty_like(numbers) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, numbers)
    rows = torch.stack(parts)
    return Facts(tokens=float(rows[:, 0].sum()), stop=Stop(int(rows[:, 1].max())), save=bool(rows[:, 2].max()))


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of a host tensor, fp64. Logging sums the losses of several steps at once."""
    return _reduced(values, distributed.ReduceOp.SUM)


def largest(values: torch.Tensor) -> torch.Tensor:
    """Maximum over ranks of a host tensor, fp64: a step is as slow as its slowest rank."""
    return _reduced(values, distributed.ReduceOp.MAX)


def _reduced(values: torch.Tensor, operation: distributed.ReduceOp.RedOpType) -> torch.Tensor:
    values = values.detach().to("cpu", torch.float64)
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values, op=operation)
    return values
