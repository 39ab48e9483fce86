"""The gated activation silu(gate) * up, forward and backward.

Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202. The backward recomputes the sigmoid from `gate`,
so that only the two inputs are kept, and writes both gradients in one pass.
"""

from typing import Any

import torch
from fmscale.kernels.dispatch import Config, bucket, choose, launch_config, settled
from fmscale.kernels.launch import accumulator, jit, on, rows, tl, tl_dtype, triton_refusal
from torch import Tensor

from fmscale.errors import KernelError


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    GATE, UP, Y, F, stride_gate, stride_up, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    gate = tl.load(GATE + row * stride_gate + column, mask=inside, other=0.0).to(ACC)
    up = tl.load(UP + row * stride_up + column, mask=inside, other=0.0).to(ACC)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(Y + row * F + column, y.to(Y.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    DY, GATE, UP, DGATE, DUP, F, stride_dy, stride_gate, stride_up, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    dy = tl.load(DY + row * stride_dy + column, mask=inside, other=0.0).to(ACC)
    gate = tl.load(GATE + row * stride_gate + column, mask=inside, other=0.0).to(ACC)
    up = tl.load(UP + row * stride_up + column, mask=inside, other=0.0).to(ACC)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(DGATE + row * F + column, dgate.to(DGATE.dtype.element_ty), mask=inside)
    tl.store(DUP + row * F + column, (dy * gate * sigmoid).to(DUP.dtype.element_ty), mask=inside)


def configs() -> dict[str, tuple[Config, ...]]:
    """Launch configurations per kernel; the first is the default (8 elements, 16 bytes of bf16, a thread)."""
    sizes = ((1024, 4), (2048, 8), (512, 2), (4096, 8))
    choices: tuple[Config, ...] = tuple({"BLOCK": block, "num_warps": warps} for block, warps in sizes)
    return {"forward": choices, "backward": choices}


def _launch(kernel: str, t: Tensor) -> tuple[tuple[int, int], Config]:
    case = bucket(t.dtype, F=t.shape[1])
    launch = launch_config("swiglu", kernel, t.device, case, configs()[kernel])
    return (t.shape[0], -(-t.shape[1] // launch["BLOCK"])), launch


@torch.library.custom_op("fmscale::swiglu", mutates_args=())
def _op(gate: Tensor, up: Tensor) -> Tensor:
    y = gate.new_empty(gate.shape)
    if gate.numel():
        grid, launch = _launch("forward", gate)
        acc = tl_dtype(accumulator(gate.dtype))
        with on(gate.device):
            _forward_kernel[grid](gate, up, y, gate.shape[1], gate.stride(0), up.stride(0), ACC=acc, **launch)
    return y


@_op.register_fake
def _fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("fmscale::swiglu_backward", mutates_args=())
def _backward_op(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate = gate.new_empty(gate.shape)
    dup = up.new_empty(up.shape)
    if gate.numel():
        grid, launch = _launch("backward", gate)
        acc = tl_dtype(accumulator(gate.dtype))
        with on(gate.device):
            _backward_kernel[grid](
                dy, gate, up, dgate, dup, gate.shape[1], dy.stride(0), gate.stride(0), up.stride(0), ACC=acc, **launch,
            )  # fmt: skip
    return dgate, dup


@_backward_op.register_fake
def _backward_fake(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return (gate.new_empty(gate.shape), up.new_empty(up.shape))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = _backward_op(rows(dy), *ctx.saved_tensors)
    return dgate, dup


_op.register_autograd(_backward, setup_context=_save)


def swiglu_eager(gate: Tensor, up: Tensor) -> Tensor:
    """`swiglu` in plain torch: the reference, and the `eager` backend."""
    acc = accumulator(gate.dtype)
    if gate.dtype == acc:
        return torch.nn.functional.silu(gate) * up
    return (torch.nn.functional.silu(gate.to(acc)) * up.to(acc)).to(gate.dtype)


def swiglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """`gate * sigmoid(gate) * up`, elementwise.

    gate and up (..., F) share shape and dtype: fp32, fp16 or bf16 (fp64 under the interpreter), any strides; the halves
    of one (..., 2F) tensor are read in place. Computed in fp32, rounded once. Returns (..., F), contiguous.
    Differentiable once. Raises KernelError for unequal shapes or dtypes.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise KernelError(
            "swiglu needs gate and up of one shape and dtype",
            found=[(tuple(t.shape), str(t.dtype)) for t in (gate, up)],
            remedy="Split one projection in two halves, or project twice to the same width.",
        )
    if settled("swiglu", backend, gate):
        return swiglu_eager(gate, up)
    refusals = {"triton": triton_refusal(gate.device, gate.dtype), "eager": None}
    if choose("swiglu", backend, gate.device, bucket(gate.dtype, F=gate.shape[-1]), refusals) == "eager":
        return swiglu_eager(gate, up)
    y: Tensor = _op(rows(gate), rows(up))
    return y.view(gate.shape)
