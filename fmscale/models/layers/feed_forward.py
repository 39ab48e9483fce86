"""The feed-forward network of a block."""

from torch import Tensor, nn

from fmscale.kernels import swiglu
from fmscale.models.layers.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden_dim)
        self.w2 = Linear(hidden_dim, dim)
        self.w3 = Linear(dim, hidden_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        out: Tensor = self.w2(swiglu(self.w1(x_BTD), self.w3(x_BTD)))
        return out
