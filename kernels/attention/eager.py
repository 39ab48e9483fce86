"""Attention in plain torch: the reference, the `eager` backend, and the call of torch's own SDPA.

A CPU trainer runs the eager backend when SDPA cannot serve a call. Both take documents of equal lengths as batches of
bounded size, so that eager's memory holds the scores of the longest document, not of the whole packed row. Under
torch.compile, where lengths are unknown, one mask over all tokens replaces the batches.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fmscale.kernels.launch import accumulator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmscale.errors import KernelError

FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
FLASH_WIDEST = 256
"""Largest head dim of torch's flash and cuDNN kernels."""
BATCH_SCORES = 2**20
"""Scores (heads x queries x keys) of a batch of documents: with 2**22, eager takes 1.5 times as long at 16 x 196."""


def fused_refusal(dtype: torch.dtype, E: int, *, grouped: bool) -> str | None:
    """Reason why none of torch's fused CUDA kernels takes a head dim `E` of `dtype`, or None.

    The rules of torch's sdp_utils.cpp: flash and cuDNN take 16-bit dtypes and head dims up to 256; the memory-efficient
    kernel also takes fp32 and any row of a multiple of 16 bytes, but no grouped heads.
    """
    if dtype.itemsize == 2 and E <= FLASH_WIDEST:
        return None
    if dtype.itemsize > 4:
        return f"{dtype}: its fused kernels take fp16, bf16 and fp32"
    subject = f"{dtype} with a head dim of {E}" if dtype.itemsize == 2 else f"{dtype}"
    if grouped:
        return f"{subject} and grouped heads: its only kernel for that has none"
    if E * dtype.itemsize % 16:
        return f"{subject}, {E * dtype.itemsize} bytes a row: its only kernel for that needs a multiple of 16"
    return None


def sdpa(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention over (B, T, H, E), of documents by their lengths.

    On CUDA, cuDNN comes before flash, torch's own choice, which is 1.7 to 2.3 times slower on Hopper (pytorch issue
    142132). The quadratic math backend is excluded.
    """
    if cu_seqlens is not None:

        def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
            return (sdpa(q, k, v, None, causal=causal, scale=scale) if k.shape[1] else torch.zeros_like(q),)

        return _by_length(attention, q, k, v, cu_seqlens, cu_seqlens)[0]
    heads = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    fused: Any = contextlib.nullcontext()
    if q.device.type == "cuda":
        fused = sdpa_kernel(FUSED, set_priority=True)
    with fused:
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads, is_causal=causal, scale=scale, enable_gqa=q.shape[2] != k.shape[2]
        )
    return out.transpose(1, 2)


def eager(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, *,
    causal: bool, window: int, softcap: float, sinks: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (B, T, H, E) and log-sum-exp (B, H, T); arguments as in `forward.forward`.

    Products in the inputs' dtype, softmax in fp32 (fp64 for fp64).
    """
    softmax = functools.partial(attend, softcap=softcap, sinks=sinks, scale=scale)
    T, S = q.shape[1], k.shape[1]
    if cu_q is None or cu_k is None or not T:
        return softmax(q, k, v, _band(T, S, causal, window, q.device))
    if torch.compiler.is_compiling():
        return softmax(q, k, v, _document_mask(cu_q, cu_k, T, S, causal, window))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = softmax(q, k, v, _band(q.shape[1], k.shape[1], causal, window, q.device))
        return out, lse.transpose(1, 2)

    out, lse = _by_length(attention, q, k, v, cu_q, cu_k)
    return out, lse.transpose(1, 2)


def _by_length(
    attention: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Results (1, tokens, ...) of `attention`, which gets documents of equal lengths as a batch.

    Tokens after the last document are a document without keys.
    """
    lengths, counts = _runs(cu_q.cpu(), cu_k.cpu(), q.shape[1], k.shape[1])
    sizes_q, sizes_k = ([run[side] * n for run, n in zip(lengths, counts, strict=True)] for side in (0, 1))
    # all pieces of a split share a gradient; each slice has its own of all tokens: 256 images took 6 times as long
    pieces = [x[0].split([*n, x.shape[1] - sum(n)]) for x, n in ((q, sizes_q), (k, sizes_k), (v, sizes_k))]
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, (T, S) in enumerate(lengths):
        most = max(1, BATCH_SCORES // max(1, q.shape[2] * T * S))
        if T:  # a run is a view, several runs are copied into a batch: not worth it for a long document
            groups.setdefault((T, S, -1 if most > 1 else i), []).append(i)
    results: dict[int, tuple[Tensor, ...]] = {}
    for (T, S, _), runs in groups.items():
        most = max(1, BATCH_SCORES // max(1, q.shape[2] * T * S))
        documents = sum(counts[i] for i in runs)
        batches = [
            _cat([x[i] for i in runs]).unflatten(0, (documents, length)).split(most)
            for x, length in zip(pieces, (T, S, S), strict=True)
        ]
        found = zip(*(attention(*batch) for batch in zip(*batches, strict=True)), strict=True)
        parts = [_cat(x).flatten(0, 1).split([sizes_q[i] for i in runs]) for x in found]
        results |= zip(runs, zip(*parts, strict=True), strict=True)
    return [_cat(parts)[None] for parts in zip(*(results[i] for i in sorted(results)), strict=True)]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _runs(cu_q: Tensor, cu_k: Tensor, T: int, S: int) -> tuple[list[tuple[int, int]], list[int]]:
    """(queries, keys) of each run of documents of equal lengths, then of the rest, and the documents in each run."""
    codes, counts = torch.unique_consecutive(cu_q.diff().long() << 32 | cu_k.diff(), return_counts=True)
    rest = T - int(cu_q[-1])
    if cu_q[0] or cu_k[0] or (codes < 0).any() or rest < 0 or cu_k[-1] > S:
        raise KernelError(
            "cu_seqlens must start at 0, never decrease, and end within the tokens",
            found=(cu_q.tolist(), cu_k.tolist(), T, S),
            remedy="They are the cumulative lengths of the documents.",
        )
    return [*((code >> 32, code & 0xFFFFFFFF) for code in codes.tolist()), (rest, 0)], [*counts.tolist(), 1]


def _band(T: int, S: int, causal: bool, window: int, device: torch.device) -> Tensor | None:
    """Mask (T, S) of the keys that each query sees, or None where every query sees all keys."""
    if not causal and not window:
        return None
    distance = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
    return _near(distance, causal, window)


def _near(distance: Tensor, causal: bool, window: int) -> Tensor:
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window:
        seen = seen & (distance.abs() < window)
    return seen


def _document_mask(cu_q: Tensor, cu_k: Tensor, T: int, S: int, causal: bool, window: int) -> Tensor:
    """Mask (T, S) of keys in the query's document, by causality and window, without any length on the host."""
    q, k = torch.arange(T, device=cu_q.device), torch.arange(S, device=cu_q.device)
    document_q = torch.searchsorted(cu_q[1:], q, right=True)
    document_k = torch.searchsorted(cu_k[1:], k, right=True)
    last = cu_q.numel() - 2
    own = document_q.clamp(max=last)
    position = q - cu_q[own + 1] + cu_k[own + 1]  # of the last key that a causal query sees
    same = (document_q[:, None] == document_k[None, :]) & (document_q <= last)[:, None]
    return same & _near(position[:, None] - k[None, :], causal, window)


def attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, *, softcap: float, sinks: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, lse (B, H, T)) over the keys in mask `seen`, broadcast to (B, K, H // K, T, S); None: over all keys."""
    B, T, H, E = q.shape
    S, K = k.shape[1:3]
    acc = accumulator(q.dtype)
    # (B, K, G, T, E) @ (B, K, 1, E, S)
    grouped = q.reshape(B, T, K, H // K, E).permute(0, 2, 3, 1, 4)
    scores = (grouped @ k.permute(0, 2, 3, 1)[:, :, None]).to(acc) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    sink = None if sinks is None else sinks.to(acc).view(K, H // K, 1)
    peak = scores.detach().amax(-1) if S else scores.new_full(scores.shape[:-1], -torch.inf)
    if sink is not None:
        peak = peak.maximum(sink.detach())
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights = torch.exp(scores - peak[..., None])
    total = weights.sum(-1)
    if sink is not None:
        total = total + torch.exp(sink - peak)
    nothing = total == 0
    total = total.masked_fill(nothing, 1.0)
    lse = (peak + torch.log(total)).masked_fill(nothing, -torch.inf)
    out = (weights / total[..., None]).to(v.dtype) @ v.permute(0, 2, 1, 3)[:, :, None]
    return out.permute(0, 3, 1, 2, 4).reshape(B, T, H, E), lse.reshape(B, H, T)
