"""Next-token prediction."""

from typing import Any

import torch
from torch import Tensor, nn

from fmscale.objectives.protocol import Inputs, Loss, Objective, SampleBatch


class NextToken(Objective):
    """Cross-entropy in nats of each label given the tokens of its document up to its position."""

    unit = "tokens"

    def collate(self, batch: SampleBatch) -> Inputs:
        """The parts `tokens` and `labels`, with `positions` and `cu_seqlens`."""
        tensors = {name: batch.parts[name] for name in ("tokens", "labels")}
        tensors |= {"positions": batch.positions, "cu_seqlens": batch.cu_seqlens}
        return Inputs(tensors=tensors, weights=batch.weights, source=batch.source, bounds=batch.bounds)

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any = None) -> Loss:
        """`model(tokens_BT, positions_BT=, cu_seqlens=)` gives hidden states, and `model.head(hidden, labels=,
        token_weights=)` the loss. The sum is not divided here: if the caller divides it by the step's
        count, the result does not depend on microbatches, ranks and fillers.
        """
        given = inputs.tensors
        hidden_BTD = model(given["tokens"], positions_BT=given["positions"], cu_seqlens=given["cu_seqlens"])
        head: Any = model.head
        total, count, losses_BT = head(hidden_BTD, labels=given["labels"], token_weights=inputs.weights)
        by_sample = torch.stack([by_samples(each.float(), inputs.bounds) for each in (losses_BT, inputs.weights)])
        return Loss(sum=total, count=count, by_sample=by_sample)


def by_samples(values: Tensor, bounds: Tensor) -> Tensor:
    """Sums over each sample of values in rows [B, T], or in a flat forward [1, N] by `bounds`."""
    if values.shape[0] == bounds.numel() - 1:
        return values.sum(1)
    return torch.segment_reduce(values.flatten(), "sum", offsets=bounds, initial=0, unsafe=True)
