"""The contract of an objective: `Inputs` in, a `Loss` out. Shapes: B rows, T tokens a row."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Rows of a forward, on the model's device."""

    tokens_BT: Tensor
    """int64: tokens that the model reads."""
    labels_BT: Tensor
    """int64: the right answer at each token; any valid id where the weight is 0."""
    weights_BT: Tensor
    """float32: weight of each label; 0 for labels that are not predicted, and in fillers."""
    positions_BT: Tensor
    """int64: position of each token in its document."""
    cu_seqlens: Tensor
    """int32 (documents + 1,): boundaries of the documents in the B * T tokens read as one sequence."""
    source_B: Tensor
    """int64: source of the mixture that each row came from; -1 for a filler."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """A sum over tokens and its count, kept apart: a step divides by its count over all ranks."""

    sum: Tensor
    """fp32 scalar, differentiable."""
    count: Tensor
    """fp32 scalar: the weight of the tokens in `sum`."""
    losses_BT: Tensor
    """fp32, detached: the part of each token in `sum`."""


Objective = Callable[[nn.Module, Inputs], Loss]
"""The loss of a model on its inputs."""
