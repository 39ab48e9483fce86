"""Root-mean-square norm."""

from typing import overload

import torch
from torch import Tensor, nn

from fmscale.kernels import rms_norm


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * (weight + offset)` over the last dimension (Zhang and Sennrich, arXiv 1910.07467).
    Gemma's offset is 1.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x (..., D); with a residual, (the norm of x + residual, x + residual) in one pass."""
        out: Tensor | tuple[Tensor, Tensor] = rms_norm(x, shifted(self.weight, self.offset), residual, eps=self.eps)
        return out


def shifted(weight: Tensor, offset: float) -> Tensor:
    """weight + offset, in fp32 at least: bf16 has 8 bits, and 1 + w would lose those of a small w."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset if offset else weight
