"""One optimizer step, from the microbatches to the update, short enough for a screen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmscale.objectives.protocol import Inputs
from fmscale.train.engine.protocol import Engine, Update


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step on this rank; tensors stay on the device until they are logged."""

    loss_sum: Tensor
    """fp32 scalar: summed loss of this rank's tokens."""
    loss_by_source: Tensor
    """fp32 [2, sources]: summed loss and weight of this rank's tokens, by source."""
    tokens: float
    """Valid tokens of the step over all ranks."""
    update: Update
    """Outcome of the optimizer step."""


def train_step(
    engine: Engine,
    microbatches: Sequence[Inputs],
    *,
    tokens: float,
    sources: int,
    rate: float,
    seed: Callable[[int], None],
    fence: Callable[[], None],
) -> StepResult:
    """Forward and backward of every microbatch, then one update.

    The loss is summed and divided by the *global* number of valid tokens of the step: ranks, microbatches
    and fillers then have no influence (the gradient-accumulation bug of many trainers, 2024).

    Args:
        engine: the sharded model.
        microbatches: inputs of this rank's forwards, the same number on every rank.
        tokens: valid tokens of the step over all ranks.
        sources: number of sources, for the loss by source.
        rate: learning rate.
        seed: seeds dropout for microbatch i.
        fence: returns when a checkpoint's copy of masters and moments is done.
    """
    device = microbatches[0].tokens_BT.device
    loss_sum = torch.zeros((), device=device)
    by_source = torch.zeros((2, sources + 1), device=device)
    for i, inputs in enumerate(microbatches):
        seed(i)
        loss = engine.forward(inputs)
        engine.backward(loss.sum / tokens, last=i == len(microbatches) - 1)
        loss_sum += loss.sum.detach()
        rows_2B = torch.stack((loss.losses_BT.float().sum(1), inputs.weights_BT.sum(1)))
        by_source.index_add_(1, inputs.source_B + 1, rows_2B)
    fence()
    update = engine.step(rate)
    return StepResult(loss_sum=loss_sum, loss_by_source=by_source[:, 1:], tokens=tokens, update=update)
