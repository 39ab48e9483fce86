"""AdamW on one flat partition: unscale, clip, moments, master and low-precision copy, in one pass.

Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101; the partition is a rank's part
under ZeRO (Rajbhandari et al., arXiv 1910.02054). With a bf16 gradient and copy, a step moves 28 bytes a parameter: it
reads and writes each array once.
"""

import math

import torch
from fmscale.kernels.dispatch import Config, choose, launch_config
from fmscale.kernels.launch import jit, on, tl, triton_refusal
from torch import Tensor

from fmscale.errors import KernelError


@jit
def _adamw_kernel(  # type: ignore[no-untyped-def]
    MASTER, GRAD, FIRST, SECOND, COPY, SCALE, NORM, n, keep, step_size, beta1, rest1, beta2, rest2, correction2, eps,
    max_norm, HAS_COPY: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_NORM: tl.constexpr, CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    multiplier = 1.0
    if HAS_SCALE:
        multiplier = 1.0 / tl.load(SCALE)
    if HAS_NORM:
        norm = tl.load(NORM)
        if CLIP:
            multiplier *= tl.minimum(1.0, max_norm / (norm + 1e-6))
        n = tl.where(norm < float("inf"), n, 0)  # infinite or NaN: nothing is written
    inside = at < n
    gradient = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32) * multiplier
    first = tl.load(FIRST + at, mask=inside, other=0.0) * beta1 + gradient * rest1
    second = tl.load(SECOND + at, mask=inside, other=0.0) * beta2 + gradient * gradient * rest2
    master = tl.load(MASTER + at, mask=inside, other=0.0) * keep
    master -= step_size * first / (tl.sqrt(second) * correction2 + eps)
    tl.store(FIRST + at, first, mask=inside)
    tl.store(SECOND + at, second, mask=inside)
    tl.store(MASTER + at, master, mask=inside)
    if HAS_COPY:
        tl.store(COPY + at, master.to(COPY.dtype.element_ty), mask=inside)


def configs() -> dict[str, tuple[Config, ...]]:
    """Launch configurations; the first is the default (8 elements a thread: two 16-byte fp32 accesses)."""
    sizes = ((1024, 4), (2048, 8), (512, 4), (4096, 8))
    return {"step": tuple({"BLOCK": block, "num_warps": warps} for block, warps in sizes)}


@torch.library.custom_op("fmscale::adamw_step", mutates_args=("master", "first_moment", "second_moment", "copy"))
def _op(
    master: Tensor, grad: Tensor, first_moment: Tensor, second_moment: Tensor, copy: Tensor | None,
    loss_scale: Tensor | None, grad_norm: Tensor | None, max_norm: float | None,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
) -> None:  # fmt: skip
    n = master.numel()
    if not n:
        return
    launch = launch_config("adamw_step", "step", master.device, str(grad.dtype), configs()["step"])
    with on(master.device):
        _adamw_kernel[(-(-n // launch["BLOCK"]),)](
            master, grad, first_moment, second_moment, master if copy is None else copy,
            master if loss_scale is None else loss_scale, master if grad_norm is None else grad_norm, n,
            1.0 - lr * weight_decay, lr / (1.0 - beta1**step), beta1, 1.0 - beta1, beta2, 1.0 - beta2,
            1.0 / math.sqrt(1.0 - beta2**step), eps, 0.0 if max_norm is None else max_norm, HAS_COPY=copy is not None,
            HAS_SCALE=loss_scale is not None, HAS_NORM=grad_norm is not None, CLIP=max_norm is not None, **launch,
        )  # fmt: skip


_op.register_fake(lambda *_: None)


@torch.no_grad()
def adamw_step_eager(
    master: Tensor, grad: Tensor, first_moment: Tensor, second_moment: Tensor, *, copy: Tensor | None = None,
    loss_scale: Tensor | None = None, grad_norm: Tensor | None = None, max_norm: float | None = None, lr: float,
    betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0, step: int,
) -> None:  # fmt: skip
    """`adamw_step` in plain torch, in the dtype of `master`: the reference, and the `eager` backend."""
    gradient = grad.to(master.dtype)
    if loss_scale is not None:
        gradient = gradient / loss_scale
    finite = torch.ones((), dtype=torch.bool, device=master.device)
    if grad_norm is not None:
        if max_norm is not None:
            gradient = gradient * torch.clamp(max_norm / (grad_norm + 1e-6), max=1.0)
        finite = grad_norm.isfinite()
    beta1, beta2 = betas
    first = first_moment * beta1 + gradient * (1.0 - beta1)
    second = second_moment * beta2 + gradient.square() * (1.0 - beta2)
    denominator = second.sqrt() / math.sqrt(1.0 - beta2**step) + eps
    updated = master * (1.0 - lr * weight_decay) - lr / (1.0 - beta1**step) * first / denominator
    first_moment.copy_(torch.where(finite, first, first_moment))
    second_moment.copy_(torch.where(finite, second, second_moment))
    master.copy_(torch.where(finite, updated, master))
    if copy is not None:
        copy.copy_(torch.where(finite, master.to(copy.dtype), copy))


def adamw_step(
    master: Tensor, grad: Tensor, first_moment: Tensor, second_moment: Tensor, *, copy: Tensor | None = None,
    loss_scale: Tensor | None = None, grad_norm: Tensor | None = None, max_norm: float | None = None,
    lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0,
    step: int, backend: str = "auto",
) -> None:  # fmt: skip
    """One AdamW update of a flat partition, in place, without a host sync.

    master, first_moment, second_moment (n,) fp32; grad (n,) fp32, fp16 or bf16; copy (n,) gets the new master in its
    own dtype. All contiguous, on one device. loss_scale and grad_norm are fp32 scalars on that device: the gradient is
    divided by loss_scale, then multiplied by min(1, max_norm / (grad_norm + 1e-6)); grad_norm is the unscaled norm over
    all partitions. Where grad_norm is not finite, the step writes nothing: the caller reads grad_norm, counts and
    reports the skipped step. step counts from 1. Raises KernelError for wrong shapes, dtypes, strides, step < 1, or
    max_norm without grad_norm.
    """
    dtypes = (grad.dtype, master.dtype if copy is None else copy.dtype)
    refusals = {"triton": triton_refusal(master.device, *dtypes), "eager": None}
    chosen = choose("adamw_step", backend, master.device, str(grad.dtype), refusals)
    _check(master, grad, first_moment, second_moment, copy, loss_scale, grad_norm, max_norm, step)
    if chosen == "eager":
        return adamw_step_eager(
            master, grad, first_moment, second_moment, copy=copy, loss_scale=loss_scale, grad_norm=grad_norm,
            max_norm=max_norm, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step,
        )  # fmt: skip
    with torch.no_grad():
        _op(
            master, grad, first_moment, second_moment, copy, loss_scale, grad_norm, max_norm,
            lr, *betas, eps, weight_decay, step,
        )  # fmt: skip
    return None


def _check(
    master: Tensor, grad: Tensor, first: Tensor, second: Tensor, copy: Tensor | None,
    scale: Tensor | None, norm: Tensor | None, max_norm: float | None, step: int,
) -> None:  # fmt: skip
    arrays = {"master": master, "grad": grad, "first_moment": first, "second_moment": second, "copy": copy}
    for name, array in arrays.items():
        if array is None:
            continue
        state = name in ("master", "first_moment", "second_moment")
        if array.shape != (master.numel(),) or not array.is_contiguous() or array.device != master.device:
            raise KernelError(
                f"adamw_step needs {name} flat, contiguous and as long as master, on its device",
                found=(tuple(array.shape), array.stride(), str(array.device)),
                remedy="Flatten the partition first.",
            )
        if state and array.dtype != torch.float32:
            raise KernelError(
                f"adamw_step keeps {name} in fp32", found=str(array.dtype), remedy="Cast it once at the start."
            )
    for name, scalar in {"loss_scale": scale, "grad_norm": norm}.items():
        if scalar is not None and (
            scalar.numel() != 1 or scalar.dtype != torch.float32 or scalar.device != master.device
        ):
            raise KernelError(
                f"adamw_step needs {name} as one fp32 number",
                found=(tuple(scalar.shape), str(scalar.dtype), str(scalar.device)),
                remedy="Pass a scalar tensor on the partition's device.",
            )
    if step < 1 or (max_norm is not None and norm is None):
        raise KernelError(
            "adamw_step needs step >= 1, and grad_norm wherever max_norm is given",
            found={"step": step, "max_norm": max_norm, "grad_norm": None if norm is None else "given"},
            remedy="Compute the norm over all partitions first; the first step is 1.",
        )
