"""A loss as its two parts, so that it can be divided by the number of tokens of a whole step, over all ranks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """A sum over tokens and what to divide it by."""

    sum: Tensor
    """fp32 scalar, differentiable."""
    count: Tensor
    """fp32 scalar: the weight of the tokens in `sum`."""
    losses_BT: Tensor
    """fp32, detached: what each token adds to `sum`."""
