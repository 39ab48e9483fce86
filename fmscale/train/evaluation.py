"""Losses on held-out rows while training."""

from collections.abc import Iterable

import torch

from fmscale.objectives.inputs import Inputs
from fmscale.runtime.collectives import total
from fmscale.train.engine.deepspeed import Engine


@torch.no_grad()
def heldout_loss(engine: Engine, microbatches: Iterable[Inputs]) -> float:
    """Mean loss in nats a token over all ranks' rows. Every rank must bring the same number of microbatches."""
    engine.module.eval()
    try:
        sums = [torch.stack((loss.sum.float(), loss.count.float())) for loss in map(engine.forward, microbatches)]
    finally:
        engine.module.train()
    loss, count = total(torch.stack(sums).sum(0)).tolist()
    return float(loss / count)
