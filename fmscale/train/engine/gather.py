"""Rows of all ranks, with a gradient: the `Gather` of objectives."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from fmscale.objectives.protocol import Gather
from fmscale.runtime.axes import Axis


def gather_over(axis: Axis) -> Gather:
    """Function that joins the ranks' rows along `axis`; on one rank it returns its argument."""
    if axis.size == 1:
        return lambda rows: rows
    return lambda rows: _Gathered.apply(rows, axis)  # type: ignore[no-untyped-call]


class _Gathered(torch.autograd.Function):
    """All-gather, whose backward is reduce-scatter (sum): each rank gets the gradients that all ranks have of its rows.

    Ranks with fewer rows than another are padded for the collective: it moves equal parts.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, axis: Axis) -> Tensor:
        # on the host, over gloo, so that the sizes cost no synchronisation with the device
        sizes = torch.zeros(axis.size, dtype=torch.int64)
        sizes[axis.rank] = rows.shape[0]
        distributed.all_reduce(sizes, group=axis.group)
        ctx.axis, ctx.sizes = axis, sizes.tolist()
        padded = _padded(rows, max(ctx.sizes))
        parts = [torch.empty_like(padded) for _ in ctx.sizes]
        distributed.all_gather(parts, padded, group=axis.group)
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        axis, most = ctx.axis, max(ctx.sizes)
        parts = [_padded(part, most) for part in gradient.split(ctx.sizes)]
        own = torch.empty_like(parts[axis.rank])
        distributed.reduce_scatter(own, parts, group=axis.group)
        return own[: ctx.sizes[axis.rank]], None


def _padded(rows: Tensor, size: int) -> Tensor:
    """The rows, with zeros up to `size`, in one block of memory."""
    return pad(rows, (0, 0) * (rows.dim() - 1) + (0, size - rows.shape[0])).contiguous()
