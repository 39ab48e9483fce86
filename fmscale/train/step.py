"""One optimizer step, from the microbatches to the update, short enough for a screen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fmscale.objectives.protocol import Inputs
from fmscale.train.engine.protocol import Engine, Update


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step on this rank; tensors stay on the device until they are logged."""

    loss_sum: Tensor
    """fp32 scalar: summed loss of this rank's targets."""
    loss_by_source: Tensor
    """fp32 [2, sources]: summed loss and weight of this rank's targets, by source."""
    count: float
    """Weight of the step's targets over all ranks."""
    update: Update
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars: the objective's metrics, summed over this rank's forwards."""


@dataclass(frozen=True)
class _Seeded(Sequence[Inputs]):
    """A step's inputs; taking number i seeds dropout as in forward i."""

    inputs: Sequence[Inputs]
    seed: Callable[[int], None]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Inputs:  # type: ignore[override]
        self.seed(i)
        return self.inputs[i]


def train_step(
    engine: Engine,
    microbatches: Sequence[Inputs],
    *,
    count: float,
    sources: int,
    rate: float,
    seed: Callable[[int], None],
    launched: Callable[[], None] = lambda: None,
    fence: Callable[[], None] = lambda: None,
    accept: Callable[[Tensor, float], bool] | None = None,
) -> StepResult:
    """Forward and backward of every microbatch, then one update.

    The loss is summed and divided by the *global* weight of the step's targets: ranks, microbatches
    and fillers then have no influence (the gradient-accumulation bug of many trainers, 2024).

    Args:
        engine: the sharded model.
        microbatches: inputs of this rank's forwards, the same number on every rank.
        count: weight of the step's targets over all ranks.
        sources: number of sources, for the loss by source.
        rate: learning rate.
        seed: seeds dropout for microbatch i.
        launched: called after the last backward: a GPU is still busy with it, and the host is free.
        fence: returns when a checkpoint's copy of masters and moments is done.
        accept: refuses the update by this rank's summed loss and the global gradient norm; all ranks answer alike.
    """
    device = microbatches[0].weights.device
    loss_sum = torch.zeros((), device=device)
    by_source = torch.zeros((2, sources + 1), device=device)
    metrics: dict[str, Tensor] = {}
    contexts = engine.before(_Seeded(microbatches, seed))
    for i, (inputs, context) in enumerate(zip(microbatches, contexts, strict=True)):
        seed(i)
        loss = engine.forward(inputs, context)
        engine.backward(loss.sum / count, last=i == len(microbatches) - 1)
        loss_sum += loss.sum.detach()
        by_source.index_add_(1, inputs.source + 1, loss.by_sample)
        for name, value in loss.metrics.items():
            metrics[name] = metrics[name] + value if i else value
    launched()
    fence()
    update = engine.step(rate, None if accept is None else partial(accept, loss_sum))
    return StepResult(loss_sum=loss_sum, loss_by_source=by_source[:, 1:], count=count, update=update, metrics=metrics)
