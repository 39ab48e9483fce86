"""Root-mean-square norm."""

from typing import overload

import torch
from torch import Tensor, nn

from fmscale.kernels import rms_norm


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x (..., D); with a residual, (the norm of x + residual, x + residual) in one pass."""
        out: Tensor | tuple[Tensor, Tensor] = rms_norm(x, self.weight, residual, eps=self.eps)
        return out
