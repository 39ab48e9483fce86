"""Next-token prediction."""

from typing import Any

from torch import nn

from fmscale.objectives.protocol import Inputs, Loss


def next_token(model: nn.Module, inputs: Inputs) -> Loss:
    """Cross-entropy in nats of each label given the tokens of its document up to its position.

    `model(tokens_BT, positions_BT=, cu_seqlens=)` gives hidden states, and `model.head(hidden, labels=,
    token_weights=)` the loss. The sum is not divided here: if the caller divides it by the step's
    count, the result does not depend on microbatches, ranks and fillers.
    """
    hidden_BTD = model(inputs.tokens_BT, positions_BT=inputs.positions_BT, cu_seqlens=inputs.cu_seqlens)
    head: Any = model.head
    total, count, losses_BT = head(hidden_BTD, labels=inputs.labels_BT, token_weights=inputs.weights_BT)
    return Loss(sum=total, count=count, losses_BT=losses_BT)
