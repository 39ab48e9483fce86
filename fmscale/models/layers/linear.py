"""Matrices and embeddings without initial weights: `init_weights` or a checkpoint fills them.

torch's own modules draw their weights at construction. The draw takes longer than reading a checkpoint and
depends on the global generator.
"""

import mmap
import sys
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 2**24
"""Bytes of a weight from which its gradient lies in pages of its own; below, the heap keeps them for the next step."""


class Linear(nn.Linear):
    """x (..., in) @ weight (out, in).T, plus a bias (out,) if asked for; both are left uninitialised."""

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = False) -> None:
        super().__init__(in_dim, out_dim, bias=bias)

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Embedding(nn.Embedding):
    """Rows of weight (V, D) by token id; the weight is left uninitialised. On a CPU the gradient of a large fp32 weight
    takes memory only for the rows that were read.
    """

    def reset_parameters(self) -> None:
        """Draw nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Vectors (..., D) of the token ids (...)."""
        weight = self.weight
        trained = weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        large = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.nbytes >= LARGE
        if not large or not trained or sys.platform != "linux":
            return super().forward(input)
        rows: Tensor = _Rows.apply(weight, input)  # type: ignore[no-untyped-call]
        return rows


class _Rows(torch.autograd.Function):
    """Rows of weight (V, D). The gradient is dense, in fresh pages: the pages of rows that were not read stay the
    system's page of zeros. A tied SmolLM2 in fp32 holds 113 MB less as this is added to the head's gradient.
    """

    @staticmethod
    def forward(weight: Tensor, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ids, given = ctx.saved_tensors[0].flatten(), gradients[0]
        pages = mmap.mmap(-1, ctx.shape.numel() * given.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would hold 900 rows for each row that was read
        gradient = torch.frombuffer(pages, dtype=given.dtype).view(ctx.shape)
        return gradient.index_add_(0, ids, given.reshape(len(ids), -1)), None
