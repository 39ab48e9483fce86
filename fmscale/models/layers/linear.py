"""Matrices and embeddings without initial weights: `init_weights` or a checkpoint fills them.

torch's own modules draw their weights at construction. The draw takes longer than reading a checkpoint and
depends on the global generator.
"""

from torch import nn


class Linear(nn.Linear):
    """x (..., in) @ weight (out, in).T, plus a bias (out,) if asked for; both are left uninitialised."""

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = False) -> None:
        super().__init__(in_dim, out_dim, bias=bias)

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Embedding(nn.Embedding):
    """Rows of weight (V, D) by token id; the weight is left uninitialised."""

    def reset_parameters(self) -> None:
        """Draw nothing."""
