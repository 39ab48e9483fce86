"""Cross-entropy of a linear projection without its logits: chunks of tokens, gradients made in the forward.

Source: the chunked scheme of Liger Kernel (Hsu et al., arXiv 2410.10989); the z-loss: Chowdhery et al., "PaLM", arXiv
2204.02311, section 5. A cuBLAS product makes a chunk's logits, one kernel overwrites them with their gradient, and both
products of the backward use this gradient before the next chunk. The loss is a sum, so its upstream gradient is one
number, which scales the gradients that the forward stored.
"""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from fmscale.kernels.dispatch import Config, bucket, choose, launch_config
from fmscale.kernels.launch import accumulator, jit, on, rows, tl, tl_dtype, triton_refusal
from torch import Tensor

from fmscale.errors import KernelError

CHUNK_BYTES = 2**29
"""Bytes of logits held at once: 2048 tokens of a 128k vocabulary in bf16, which keeps the products efficient."""
CPU_TOKENS = 128
"""Tokens of a chunk on a CPU, where logits that stay in the cache halve the time of forward and backward: 0.19 s
instead of 0.36 s for 2048 tokens, V 8192, D 192, bf16, one core."""
DIRECT_CHUNKS = 4
"""Most chunks that accumulate the weight gradient in the weight's dtype: each chunk rounds it once more, and four
roundings stay below the error of bf16 logits. More chunks use an fp32 accumulator of V x D."""
SLICE_BYTES = 2**26


@jit
def _cross_entropy_kernel(  # type: ignore[no-untyped-def]
    LOGITS, LABELS, WEIGHTS, LOSS, V, ignore_index, z_loss,
    WEIGHTED: tl.constexpr, GRADIENT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits = LOGITS + row * V
    label = tl.load(LABELS + row).to(tl.int64)
    column = tl.arange(0, BLOCK)
    if label == ignore_index:
        tl.store(LOSS + row, 0.0)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                at = start + column
                tl.store(logits + at, tl.zeros((BLOCK,), dtype=LOGITS.dtype.element_ty), mask=at < V)
    else:
        # loaded before any warp overwrites it: the barriers of the reductions below come in between
        known = (label >= 0) & (label < V)
        target = tl.load(logits + label, mask=known, other=float("nan")).to(ACC)
        largest = tl.full((), float("-inf"), dtype=ACC)
        total = tl.zeros((), dtype=ACC)
        for start in range(0, V, BLOCK):
            at = start + column
            x = tl.load(logits + at, mask=at < V, other=float("-inf")).to(ACC)
            higher = tl.maximum(largest, tl.max(x, axis=0))
            total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), axis=0)
            largest = higher
        lse = largest + tl.log(total)
        weight = tl.full((), 1.0, dtype=ACC)
        if WEIGHTED:
            weight = tl.load(WEIGHTS + row).to(ACC)
        tl.store(LOSS + row, weight * (lse - target + z_loss * lse * lse))
        if GRADIENT:
            tl.debug_barrier()
            scale = 1.0 + 2.0 * z_loss * lse
            for start in range(0, V, BLOCK):
                at = start + column
                x = tl.load(logits + at, mask=at < V, other=float("-inf")).to(ACC)
                gradient = tl.exp(x - lse) * scale - tl.where(at == label, 1.0, 0.0)
                tl.store(logits + at, (weight * gradient).to(LOGITS.dtype.element_ty), mask=at < V)


def configs() -> dict[str, tuple[Config, ...]]:
    """Launch configurations; the first is the default (16 elements a thread, one row a program)."""
    sizes = ((8192, 16), (4096, 8), (16384, 32), (4096, 16))
    return {"cross_entropy": tuple({"BLOCK": block, "num_warps": warps} for block, warps in sizes)}


def _cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int, z_loss: float, gradient: bool
) -> Tensor:
    """Loss per token of a chunk; with `gradient`, `logits` become the gradient of the chunk's sum."""
    acc = accumulator(logits.dtype)
    loss = logits.new_empty(logits.shape[0], dtype=acc)
    case = bucket(logits.dtype, V=logits.shape[1])
    launch = launch_config("linear_cross_entropy", "cross_entropy", logits.device, case, configs()["cross_entropy"])
    with on(logits.device):
        _cross_entropy_kernel[(logits.shape[0],)](
            logits, labels, labels if weights is None else weights, loss, logits.shape[1], ignore_index,
            z_loss, WEIGHTED=weights is not None, GRADIENT=gradient, ACC=tl_dtype(acc), **launch,
        )  # fmt: skip
    return loss


def _cross_entropy_torch(
    logits: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int, z_loss: float, gradient: bool
) -> Tensor:
    """`_cross_entropy` in plain torch."""
    wide = logits.to(accumulator(logits.dtype))
    weight, index, known = _weights(labels, weights, ignore_index, logits.shape[1], wide.dtype)
    target = wide.gather(1, index[:, None])[:, 0]
    # In place, with one exp: each pass over new memory takes as long as the pass before it.
    most = wide.amax(-1, keepdim=True)
    total = wide.sub_(most).exp_().sum(-1)
    lse = total.log() + most[:, 0]
    loss = lse - torch.where(known, target, torch.nan) + z_loss * lse.square()
    loss = torch.where(labels == ignore_index, 0.0, weight * loss)
    if gradient:
        wide.mul_((weight * (1.0 + 2.0 * z_loss * lse) / total)[:, None])
        wide.scatter_add_(1, index[:, None], -weight[:, None])
        if wide is not logits:
            logits.copy_(wide)
    return loss


def _weights(
    labels: Tensor, weights: Tensor | None, ignore_index: int, V: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    counted = (labels != ignore_index).to(dtype)
    weight = counted if weights is None else counted * weights.to(dtype)
    known = (labels >= 0) & (labels < V)
    return weight, torch.where(known, labels, 0).long(), known


def _compute(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None, ignore_index: int,
    z_loss: float, softcap: float, chunk_bytes: int, hidden_gradient: bool, weight_gradient: bool, triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tokens, D = hidden.shape
    V = weight.shape[0]
    size = max(1, min(tokens, chunk_bytes // (V * hidden.element_size())))
    size = size // 128 * 128 if size >= 128 and size < tokens else size
    chunks = -(-tokens // size) if tokens else 0
    acc = accumulator(hidden.dtype)
    loss = hidden.new_zeros(tokens, dtype=acc)
    dhidden = torch.empty_like(hidden) if hidden_gradient else hidden.new_empty(0)
    sum_dtype = weight.dtype if chunks <= DIRECT_CHUNKS else acc
    dweight = weight.new_zeros((V, D) if weight_gradient else 0, dtype=sum_dtype)
    for first in range(0, tokens, size):
        part = slice(first, min(first + size, tokens))
        logits = hidden[part] @ weight.t()
        slope = _cap(logits, softcap, gradient=hidden_gradient or weight_gradient) if softcap else None
        loss[part] = (_cross_entropy if triton else _cross_entropy_torch)(
            logits, labels[part], None if token_weights is None else token_weights[part], ignore_index,
            z_loss, hidden_gradient or weight_gradient,
        )  # fmt: skip
        if slope is not None:
            logits *= slope
        if hidden_gradient:
            torch.mm(logits, weight, out=dhidden[part])
        if weight_gradient:
            _add_product(dweight, logits, hidden[part])
        del logits, slope  # else the logits of two chunks are alive while the next product runs
    counted, _, _ = _weights(labels, token_weights, ignore_index, V, acc)
    return loss.sum(), counted.sum(), loss, dhidden, dweight.to(weight.dtype)


def _cap(logits: Tensor, softcap: float, *, gradient: bool) -> Tensor | None:
    """Bound the logits in place; the derivative of the bound, if a gradient is needed, takes as much memory again."""
    logits.div_(softcap).tanh_()
    slope = 1.0 - logits.square() if gradient else None
    logits.mul_(softcap)
    return slope


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """total += gradient.T @ hidden, in slices of the vocabulary where `total` has the wider dtype."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.t(), hidden)
        return
    step = max(1, SLICE_BYTES // (hidden.shape[1] * hidden.element_size()))
    for first in range(0, total.shape[0], step):
        total[first : first + step] += gradient[:, first : first + step].t() @ hidden


_op = torch.library.custom_op("fmscale::linear_cross_entropy", _compute, mutates_args=())


@_op.register_fake
def _fake(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, hidden_gradient, weight_gradient, _ = rest
    acc = accumulator(hidden.dtype)
    dhidden = torch.empty_like(hidden) if hidden_gradient else hidden.new_empty(0)
    dweight = weight.new_empty(weight.shape if weight_gradient else 0)
    total, count = hidden.new_empty((), dtype=acc), hidden.new_empty((), dtype=acc)
    return total, count, hidden.new_empty(hidden.shape[0], dtype=acc), dhidden, dweight


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, ctx.hidden_gradient, ctx.weight_gradient, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else backward gets zeros for the outputs without a gradient, one of them V x D
    ctx.save_for_backward(*output[3:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 11
    dhidden, dweight = (_scale(t, upstream) for t in ctx.saved_tensors)
    gradients = (dhidden if ctx.hidden_gradient else None, dweight if ctx.weight_gradient else None)
    return *gradients, *(None,) * 9


def _scale(stored: Tensor, upstream: Tensor) -> Tensor:
    if type(stored) is not torch.Tensor:  # traced: a graph may not write to tensors that its forward saved
        return stored * upstream.to(stored.dtype)
    # In place: a second V x D would be the largest allocation of the step. Autograd's version check then refuses
    # a second backward through the same graph, which would scale twice.
    return stored.mul_(upstream)


_op.register_autograd(_backward, setup_context=_save)


class _OutsideCompiledCode(torch.autograd.Function):
    """The op on a CPU: the first call of a custom op imports torch's compiler, for 2 CPU seconds and 75 MB."""

    forward = staticmethod(_compute)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


@overload
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, token_weights: Tensor | None = None, ignore_index: int = -100,
    z_loss: float = 0.0, softcap: float | None = None, chunk_bytes: int | None = None,
    return_losses: Literal[False] = False, backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, token_weights: Tensor | None = None, ignore_index: int = -100,
    z_loss: float = 0.0, softcap: float | None = None, chunk_bytes: int | None = None,
    return_losses: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, token_weights: Tensor | None = None, ignore_index: int = -100,
    z_loss: float = 0.0, softcap: float | None = None, chunk_bytes: int | None = None,
    return_losses: bool = False, backend: str = "auto",
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(sum, count) of the cross-entropy of `hidden @ weight.T` against labels, for the caller to divide.

    With a softcap c, logit x counts as c tanh(x / c), at the cost of a second chunk of logits for its derivative.

    hidden (..., D), weight (V, D), of one dtype: fp32, fp16 or bf16 (fp64 under the interpreter); labels (...) int64 or
    int32, aligned with hidden (nothing is shifted); token_weights (...) scale each token's loss and count, without a
    gradient of their own. sum = sum_i w_i (lse_i - logit_i[label_i] + z_loss * lse_i**2) over labels other than
    ignore_index, count = sum_i w_i, both fp32 scalars. A label outside [0, V) makes the sum NaN. Differentiable once in
    hidden and weight. At most `chunk_bytes` of logits are held (None: 512 MiB, 128 tokens on a CPU), and beyond four
    chunks an fp32 V x D. The forward computes and stores the gradients, at the whole cost. return_losses: also each
    token's term of the sum (...), fp32, without a gradient of its own. backend: "triton", or "eager" (the same chunks
    in plain torch). Raises KernelError for shapes or dtypes that do not fit.
    """
    fits = hidden.shape[:-1] == labels.shape and weight.shape[1:] == hidden.shape[-1:]
    fits = fits and (token_weights is None or token_weights.shape == labels.shape)
    if not fits or hidden.dtype != weight.dtype or labels.is_floating_point():
        given = [(tuple(t.shape), str(t.dtype)) for t in (hidden, weight, labels)]
        raise KernelError(
            "linear_cross_entropy needs hidden (..., D) and weight (V, D) of one dtype, integer labels (...)",
            found=given,
            remedy="Cast the weight to the dtype of the activations.",
        )
    refusals = {"triton": triton_refusal(hidden.device, hidden.dtype), "eager": None}
    case = bucket(hidden.dtype, V=weight.shape[0])
    chosen = choose("linear_cross_entropy", backend, hidden.device, case, refusals)
    grad = torch.is_grad_enabled()
    on_cpu = hidden.device.type == "cpu"
    if chunk_bytes is None:
        chunk_bytes = CPU_TOKENS * weight.shape[0] * hidden.element_size() if on_cpu else CHUNK_BYTES
    eager = on_cpu and not torch.compiler.is_compiling()
    call: Callable[..., tuple[Tensor, ...]] = _OutsideCompiledCode.apply if eager else _op
    total, count, losses, _, _ = call(
        rows(hidden), weight.contiguous(), labels.reshape(-1).contiguous(),
        None if token_weights is None else token_weights.detach().reshape(-1).contiguous(), ignore_index, z_loss,
        softcap or 0.0, chunk_bytes, grad and hidden.requires_grad, grad and weight.requires_grad, chosen == "triton",
    )  # fmt: skip
    return (total, count, losses.view(labels.shape)) if return_losses else (total, count)
