"""Output projection: from hidden states to logits, or to a loss that never holds all logits at once."""

from typing import overload

import torch
from torch import Tensor, nn

from fmscale.kernels import linear_cross_entropy


class Head(nn.Module):
    """The output projection, weight (V, D). A tied model registers its embedding's weight here too, so that
    module hooks that shard weights (ZeRO-3) gather it for both modules. With a soft-cap c a logit x is c tanh(x / c).
    """

    def __init__(self, dim: int, vocab_size: int, *, softcap: float | None = None) -> None:
        super().__init__()
        self.softcap = softcap
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    @overload
    def forward(self, hidden_BTD: Tensor) -> Tensor: ...
    @overload
    def forward(
        self, hidden_BTD: Tensor, *, labels: Tensor, token_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def forward(
        self, hidden_BTD: Tensor, *, labels: Tensor | None = None, token_weights: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits (..., V); with labels (...), (sum, count, losses): the cross-entropy summed with the tokens'
        weights (...), the sum of the weights, and the weighted loss of each token (...), detached; fp32.
        """
        if labels is None:
            logits = nn.functional.linear(hidden_BTD, self.weight)
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        parts: tuple[Tensor, Tensor, Tensor] = linear_cross_entropy(
            hidden_BTD, self.weight, labels, token_weights=token_weights, softcap=self.softcap, return_losses=True
        )
        return parts
