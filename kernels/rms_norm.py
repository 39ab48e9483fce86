"""Root-mean-square norm, with the residual addition before it, forward and backward.

Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467. One pass over the rows forward and
one backward; the weight gradient is summed in two stages (one partial per program, then over the programs in order), so
its bits do not depend on scheduling.
"""

from typing import Any

import torch
from fmscale.kernels.dispatch import Config, bucket, choose, launch_config, settled
from fmscale.kernels.launch import accumulator, jit, on, round_up, rows, tl, tl_dtype, triton_refusal
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmscale.errors import KernelError

WIDEST = 16384  # a row is held in registers; above this the backward spills


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    X, R, W, Y, H, RSTD, rows, D, stride_x, stride_r, eps,
    RESIDUAL: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    x = tl.load(X + row[:, None] * stride_x + column[None, :], mask=inside, other=0.0).to(ACC)
    dense = row[:, None] * D + column[None, :]
    if RESIDUAL:
        r = tl.load(R + row[:, None] * stride_r + column[None, :], mask=inside, other=0.0).to(ACC)
        h = (x + r).to(H.dtype.element_ty)
        tl.store(H + dense, h, mask=inside)
        x = h.to(ACC)  # the norm reads the rounded sum, like the next layer and the backward
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    w = tl.load(W + column, mask=column < D, other=0.0).to(ACC)
    tl.store(Y + dense, (x * rstd[:, None] * w[None, :]).to(Y.dtype.element_ty), mask=inside)
    tl.store(RSTD + row, rstd, mask=row < rows)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    DY, DH, H, W, RSTD, DX, PARTIAL, rows, D, stride_dy, stride_dh, stride_h,
    UPSTREAM_H: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    w = tl.load(W + column, mask=column < D, other=0.0).to(ACC)
    RELOAD: tl.constexpr = BLOCK > 8192  # holding the weight too would spill 56 bytes at 16384
    dw = tl.zeros((ROWS, BLOCK), dtype=ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        x = tl.load(H + row[:, None] * stride_h + column[None, :], mask=inside, other=0.0).to(ACC)
        dy = tl.load(DY + row[:, None] * stride_dy + column[None, :], mask=inside, other=0.0).to(ACC)
        rstd = tl.load(RSTD + row, mask=row < rows, other=0.0)[:, None]
        x = x * rstd
        dw += dy * x
        if RELOAD:
            w = tl.load(W + column, mask=column < D, other=0.0).to(ACC)
        dy = dy * w[None, :]
        dx = (dy - x * (tl.sum(dy * x, axis=1) / D)[:, None]) * rstd
        if UPSTREAM_H:
            dx += tl.load(DH + row[:, None] * stride_dh + column[None, :], mask=inside, other=0.0).to(ACC)
        tl.store(DX + row[:, None] * D + column[None, :], dx.to(DX.dtype.element_ty), mask=inside)
    partial = PARTIAL + tl.program_id(0).to(tl.int64) * D + column
    tl.store(partial, tl.sum(dw, axis=0), mask=column < D)


@jit
def _reduce_kernel(  # type: ignore[no-untyped-def]
    PARTIAL, DW, programs, D, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), dtype=ACC)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (column < D)[None, :]
        total += tl.load(PARTIAL + row[:, None].to(tl.int64) * D + column[None, :], mask=inside, other=0.0)
    tl.store(DW + column, tl.sum(total, axis=0).to(DW.dtype.element_ty), mask=column < D)


def sum_partials(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of `partial` (programs, D) over the programs, in order, as (D,) of `dtype`."""
    programs, D = partial.shape
    total = partial.new_empty(D, dtype=dtype)
    with on(partial.device):
        _reduce_kernel[(-(-D // 128),)](
            partial, total, programs, D, ACC=tl_dtype(partial.dtype), ROWS=32, BLOCK=128, num_warps=4
        )
    return total


def configs(D: int) -> dict[str, tuple[Config, ...]]:
    """Launch configurations per kernel for rows of D elements; the first is the default.

    The backward has a single configuration. Its PROGRAMS is a constant, not the number of multiprocessors, so that the
    bits of the weight gradient are the same on every device and with every tuning table. 264 is two per multiprocessor
    of an H200 and costs 2 % in partials.
    """
    rows = max(1, 2048 // round_up(D))
    warps = min(32, max(4, rows * round_up(D) // 512))
    forward = tuple(
        {"ROWS": r, "num_warps": w}
        for r, w in {(rows, warps): 0, (rows, max(1, warps // 2)): 0, (min(16, rows * 2), warps): 0}
        if r * round_up(D) <= 32 * 32 * w
    )
    return {"forward": forward, "backward": ({"ROWS": rows, "PROGRAMS": 264, "num_warps": warps},)}


@torch.library.custom_op("fmscale::rms_norm", mutates_args=())
def _op(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    count, D = x.shape
    y = x.new_empty(x.shape)
    h = x.new_empty(0) if residual is None else torch.empty_like(y, dtype=residual.dtype)
    acc = accumulator(x.dtype)
    rstd = x.new_empty(count, dtype=acc)
    launch = dict(launch_config("rms_norm", "forward", x.device, bucket(x.dtype, D=D), configs(D)["forward"]))
    if count:
        other = x if residual is None else residual
        with on(x.device):
            _forward_kernel[(-(-count // launch["ROWS"]),)](
                x, other, weight, y, h, rstd, count, D, x.stride(0), other.stride(0), eps,
                RESIDUAL=residual is not None, ACC=tl_dtype(acc), BLOCK=round_up(D), **launch,
            )  # fmt: skip
    return y, h, rstd


@_op.register_fake
def _fake(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    h = x.new_empty(0) if residual is None else torch.empty_like(y, dtype=residual.dtype)
    return y, h, x.new_empty(x.shape[0], dtype=accumulator(x.dtype))


@torch.library.custom_op("fmscale::rms_norm_backward", mutates_args=())
def _backward_op(dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    count, D = h.shape
    dx = h.new_empty(h.shape)
    launch = dict(launch_config("rms_norm", "backward", h.device, bucket(dy.dtype, D=D), configs(D)["backward"]))
    programs = min(launch.pop("PROGRAMS"), -(-count // launch["ROWS"]))
    partial = rstd.new_empty(programs, D)
    acc = tl_dtype(rstd.dtype)
    other = dy if dh is None else dh
    if count:
        with on(h.device):
            _backward_kernel[(programs,)](
                dy, other, h, weight, rstd, dx, partial, count, D, dy.stride(0), other.stride(0), h.stride(0),
                UPSTREAM_H=dh is not None, ACC=acc, BLOCK=round_up(D), **launch,
            )  # fmt: skip
    return dx, sum_partials(partial, weight.dtype)


@_backward_op.register_fake
def _(dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return (h.new_empty(h.shape), weight.new_empty(weight.shape))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _ = inputs
    ctx.residual = residual is not None
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(output[1] if ctx.residual else x, weight, output[2])


def _backward(ctx: Any, dy: Tensor, dh: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    h, weight, rstd = ctx.saved_tensors
    upstream = rows(dh) if ctx.residual else None
    dx, dw = _backward_op(rows(dy), upstream, h, weight, rstd)
    return dx.to(ctx.x_dtype), dx if ctx.residual else None, dw, None


_op.register_autograd(_backward, setup_context=_save)


class _Normed(torch.autograd.Function):
    """The norm of rows, with a backward in few passes: both take 1.7 ms where autograd's own of the operations makes it
    3.7 (2,048 x 256, fp32, one thread). It keeps the rows, the weight, and a number a row.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, eps: float) -> Tensor:
        rstd = h.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(h, weight, rstd)
        return (h * rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, rstd = ctx.saved_tensors
        normed, dh = h * rstd, dy * weight
        along = torch.linalg.vecdot(dh, normed)[..., None].div_(-h.shape[-1])
        dweight = (dy * normed).reshape(-1, h.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dh.addcmul_(normed, along).mul_(rstd), dweight, None


def rms_norm_eager(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """`rms_norm` in plain torch: the reference, and the `eager` backend."""
    acc = accumulator(x.dtype)
    if x.dtype == acc == weight.dtype and (residual is None or residual.dtype == acc):
        # the same operations and bits
        h = x if residual is None else x + residual
        own = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        y = _Normed.apply(h, weight, eps) if own else torch.nn.functional.rms_norm(h, weight.shape, weight, eps)  # type: ignore[no-untyped-call]
        return y if residual is None else (y, h)
    h = x if residual is None else (x.to(acc) + residual.to(acc)).to(residual.dtype)
    wide = h.to(acc)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(acc)
    y = normed.to(x.dtype)
    return y if residual is None else (y, h)


def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """`y = h / sqrt(mean(h**2) + eps) * weight` over the last dimension, with `h = x + residual`.

    x (..., D) in fp32, fp16 or bf16 (fp64 under the interpreter), any strides; weight (D,) in any of these; residual
    like x, perhaps in a wider dtype. Computed in fp32, rounded once. Returns y (..., D) in x's dtype; with a residual
    (y, h), h in the residual's dtype; the norm reads the rounded h. Differentiable once in x, weight and
    residual. Raises KernelError for mismatched shapes, and for rows wider than 16384 with backend="triton".
    """
    D = x.shape[-1]
    if weight.shape != (D,) or (residual is not None and residual.shape != x.shape):
        shapes = [tuple(x.shape), tuple(weight.shape), None if residual is None else tuple(residual.shape)]
        raise KernelError(
            "rms_norm needs weight (D,) and residual of x's shape (..., D)",
            found=shapes,
            remedy="The order is x, weight, residual.",
        )
    if settled("rms_norm", backend, x):
        return rms_norm_eager(x, weight, residual, eps=eps)
    wide = f"rows of {D} elements (at most {WIDEST})" if D > WIDEST else None
    refusals = {"triton": triton_refusal(x.device, x.dtype) or wide, "eager": None}
    if choose("rms_norm", backend, x.device, bucket(x.dtype, D=D), refusals) == "eager":
        return rms_norm_eager(x, weight, residual, eps=eps)
    y, h, _ = _op(rows(x), None if residual is None else rows(residual), weight.contiguous(), eps)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))
