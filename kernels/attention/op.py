"""Attention with document masks, causal, window, soft-cap, sinks, grouped heads and log-sum-exp.

Deterministic by construction (no atomics; every number is summed by one program in a fixed order), with O(T) extra
memory. Sources: `forward.py`, `backward.py`, `tiles.py`.
"""

from typing import Any, Literal, cast, overload

import torch
from fmscale.kernels.attention.backward import backward
from fmscale.kernels.attention.configs import case
from fmscale.kernels.attention.device import (
    DOCUMENTS_LIMIT,
    NO_WINDOW,
    TOKENS_LIMIT,
    check_alike,
    numbers_refusal,
    unit,
)
from fmscale.kernels.attention.eager import eager, fused_refusal, sdpa
from fmscale.kernels.attention.forward import forward
from fmscale.kernels.attention.varlen import varlen, varlen_refusal
from fmscale.kernels.dispatch import choose
from torch import Tensor

from fmscale.errors import KernelError


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, sinks, cu_q, cu_k, *settings = inputs
    ctx.save_for_backward(q, k, v, *output, sinks, cu_q, cu_k)
    ctx.settings = settings


def _backward(ctx: Any, dout: Tensor, dlse: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, level, sinks, cu_q, cu_k = ctx.saved_tensors
    dq, dk, dv, dsinks = backward(
        unit(dout), dlse.contiguous(), q, k, v, out, lse, level, sinks, cu_q, cu_k, *ctx.settings
    )
    return dq, dk, dv, None if sinks is None else dsinks, None, None, None, None, None, None


forward.register_autograd(_backward, setup_context=_save)


@overload
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    causal: bool = True, window: int | None = None, softcap: float | None = None, sinks: Tensor | None = None,
    scale: float | None = None, return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    causal: bool = True, window: int | None = None, softcap: float | None = None, sinks: Tensor | None = None,
    scale: float | None = None, return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    causal: bool = True, window: int | None = None, softcap: float | None = None, sinks: Tensor | None = None,
    scale: float | None = None, return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q k^T * scale) v over the keys that each query may see.

    Dense: q (B, T, H, E), k and v (B, S, K, E). Packed: q (tokens, H, E), k and v (tokens_k, K, E), where document i is
    cu_seqlens[i]:cu_seqlens[i+1] of q and the same range of cu_seqlens_k (default: cu_seqlens) of k and v; offsets are
    (documents + 1,) int32 or int64 on q's device, start at 0 and never decrease. A document sees only itself and may be
    empty; tokens after the last document give 0. Without offsets, packed tensors are one document. H is a multiple of
    K; query head h reads kv head h // (H // K). bf16, fp16 or fp32 (fp64: eager, sdpa and the interpreter); E up to
    256; any strides.

    causal: query m of a document with Lq queries and Lk keys sees keys up to m + Lk - Lq.
    window: query m sees only the nearest `window` of these keys, its own included (not causal: on either side).
    softcap c: scores s become c * tanh(s / c). scale: default E ** -0.5.
    sinks (H,): logits, in nats, of an extra key per head with value 0; differentiable.
    return_lse: also the log of the softmax's denominator, (B, H, T) or (H, tokens), fp32, natural, sinks included;
    differentiable. A row without keys gives 0 and -inf (with sinks, the sink).

    backend: "triton" has every feature, "sdpa" and "varlen" only torch's, "eager" every feature in memory quadratic in
    the longest document; on a GPU only "triton" and "varlen" take documents in linear memory. "auto" is the fastest
    known backend for the call. Triton's gradients have the same bits every time. Raises KernelError for shapes that do
    not fit and for a backend that cannot serve the call.
    """
    _check(q, k, v, cu_seqlens, cu_seqlens_k, window, softcap, sinks, scale)
    cu_q, cu_k = cu_seqlens, cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    E = q.shape[-1]
    scale = E**-0.5 if scale is None else float(scale)
    refusals = {
        "triton": _triton_refusal(q, k, cu_q),
        "sdpa": _sdpa_refusal(q, k, cu_q, cu_seqlens_k, causal, window, softcap, sinks, return_lse),
        "varlen": varlen_refusal(q, k, cu_seqlens_k, softcap, sinks, return_lse),
        "eager": None,
    }
    if backend == "auto" and q.device.type != "cuda":
        backend = "eager" if refusals["sdpa"] else "sdpa"
    name = case(
        q.dtype, E, documents=cu_q is not None, causal=causal,
        window=window is not None, softcap=softcap is not None, sinks=sinks is not None,
    )  # fmt: skip
    chosen = choose("attention", backend, q.device, name, refusals)
    packed = q.dim() == 3
    q4, k4, v4 = (unit(x[None] if packed else x) for x in (q, k, v))
    reach = 0 if window is None else min(window, NO_WINDOW)
    cap = 0.0 if softcap is None else float(softcap)
    if chosen in ("sdpa", "varlen"):
        options: dict[str, Any] = {"causal": causal, "scale": scale}
        out = (
            sdpa(q4, k4, v4, cu_q, **options) if chosen == "sdpa" else varlen(q4, k4, v4, cu_q, window=reach, **options)
        )
        return out[0] if packed else out
    if chosen == "eager":
        out, lse = eager(q4, k4, v4, cu_q, cu_k, causal=causal, window=reach, softcap=cap, sinks=sinks, scale=scale)
    else:
        if cu_q is not None:
            cu_q, cu_k = cu_q.contiguous(), cast(Tensor, cu_k).contiguous()
        flat = None if sinks is None else sinks.contiguous()
        out, lse, _ = forward(q4, k4, v4, flat, cu_q, cu_k, causal, reach, cap, scale)
    if packed:
        out, lse = out[0], lse[0]
    return (out, lse) if return_lse else out


def _check(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None,
    window: int | None, softcap: float | None, sinks: Tensor | None, scale: float | None,
) -> None:  # fmt: skip
    shapes = [tuple(x.shape) for x in (q, k, v)]
    dense = q.dim() == 4
    if q.dim() not in (3, 4) or k.shape != v.shape or k.dim() != q.dim() or q.shape[-1] != k.shape[-1]:
        raise KernelError(
            "attention needs q (B, T, H, E) or (tokens, H, E), and k and v alike with their own T and H",
            found=shapes,
            remedy="k and v have one shape, and all three one head dim.",
        )
    if (dense and q.shape[0] != k.shape[0]) or not k.shape[-2] or q.shape[-2] % k.shape[-2]:
        raise KernelError(
            "the batches differ, or the query heads are not a multiple of the key heads",
            found=shapes,
            remedy="Heads are the last but one dimension.",
        )
    check_alike(q, k, v, sinks, window=window, softcap=softcap, scale=scale)
    for cu in (cu_q, cu_k):
        if cu is not None and (
            dense
            or cu_q is None
            or cu.dim() != 1
            or cu.numel() < 1
            or cu.shape != cu_q.shape
            or cu.dtype not in (torch.int32, torch.int64)
            or cu.device != q.device
        ):
            raise KernelError(
                "cu_seqlens needs packed tensors and int32 or int64 offsets (documents + 1,) on their device",
                found=(shapes[0], tuple(cu.shape), cu.dtype, cu.device),
                remedy="Flatten (B, T, H, E) to (B * T, H, E); cu_seqlens_k needs a cu_seqlens of its size.",
            )
    if cu_q is not None and cu_k is None and q.shape[0] != k.shape[0]:
        raise KernelError(
            "q and k have different numbers of tokens but one cu_seqlens",
            found=shapes,
            remedy="Pass the keys' offsets as cu_seqlens_k.",
        )


def _triton_refusal(q: Tensor, k: Tensor, cu: Tensor | None) -> str | None:
    if cu is not None and cu.numel() > DOCUMENTS_LIMIT:
        return f"{cu.numel() - 1} documents (at most {DOCUMENTS_LIMIT - 1})"
    if cu is not None and max(q.shape[0], k.shape[0]) > TOKENS_LIMIT:
        return f"{max(q.shape[0], k.shape[0])} packed tokens (at most {TOKENS_LIMIT})"
    return numbers_refusal(q)


def _sdpa_refusal(
    q: Tensor, k: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, causal: bool,
    window: int | None, softcap: float | None, sinks: Tensor | None, return_lse: bool,
) -> str | None:  # fmt: skip
    features = {
        "a window": window is not None, "a soft-cap": softcap is not None, "sinks": sinks is not None,
        "return_lse": return_lse, "keys with lengths of their own": cu_k is not None,
    }  # fmt: skip
    for feature, used in features.items():
        if used:
            return f"it cannot do {feature}"
    rows = -3
    if causal and q.shape[rows] != k.shape[rows]:
        return "it aligns a causal mask to the first key, not the last, when q and k differ in length"
    if cu_q is not None and (q.device.type != "cpu" or torch.compiler.is_compiling()):
        return "documents: their lengths are not known on the host, and their mask is never dropped"
    if q.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic, which torch.use_deterministic_algorithms asks for"
    if not k.numel() or not q.numel():
        return "empty tensors"
    if q.device.type == "cuda":
        return fused_refusal(q.dtype, q.shape[-1], grouped=q.shape[-2] != k.shape[-2])
    return None
