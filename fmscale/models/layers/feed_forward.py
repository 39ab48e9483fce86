"""The feed-forward network of a block."""

from typing import Literal

from torch import Tensor, nn

from fmscale.kernels import swiglu
from fmscale.models.layers.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU or GeGLU (Shazeer, arXiv 2002.05202): w2(f(w1 x) * w3 x), f the activation."""

    def __init__(self, dim: int, hidden_dim: int, *, activation: Literal["silu", "gelu_tanh"] = "silu") -> None:
        super().__init__()
        self.activation = activation
        self.w1 = Linear(dim, hidden_dim)
        self.w2 = Linear(hidden_dim, dim)
        self.w3 = Linear(dim, hidden_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        gate, up = self.w1(x_BTD), self.w3(x_BTD)
        if self.activation == "silu":
            out: Tensor = self.w2(swiglu(gate, up))
        else:
            out = self.w2(nn.functional.gelu(gate, approximate="tanh") * up)
        return out
