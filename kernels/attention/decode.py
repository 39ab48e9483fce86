"""Attention of a few new tokens to a contiguous key-value cache, split along the cache (split-KV).

One program takes one span of one key head's cache and every query that reads it: the heads of the group and the new
tokens are the rows of one tile, so that each key is read once. A second kernel joins the spans by their log-sum-exps,
in order, so the bits never depend on scheduling. The number of spans depends only on a capacity: not on the batch, so
that a sequence decodes to the same bits alone or in any batch, and not on the lengths, so that no launch waits for the
host. From 16,384 keys on the spans grow with the capacity: a caller whose caches differ in size names one for all.
Spans past a length or before a window end at once. Source: Dao et al., "Flash-Decoding for long-context inference",
2023; sinks as in `attention.forward`.
"""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from fmscale.kernels.attention.device import (
    NO_WINDOW,
    attend_keys,
    block_e,
    check_alike,
    numbers_refusal,
    precision,
    sized,
    strides,
    unit,
)
from fmscale.kernels.attention.eager import attend
from fmscale.kernels.dispatch import Config, bucket, choose, launch_config
from fmscale.kernels.launch import accumulator, on, round_up, tl, tl_dtype
from torch import Tensor

from fmscale.errors import KernelError

SPANS = 64
"""Most spans of a cache: 8 key heads make 512 programs a sequence, four waves on a Hopper's 132 multiprocessors."""


def configs(dtype: torch.dtype, width: int) -> Mapping[str, tuple[Config, ...]]:
    """Configurations for a padded head dim `width`; the first is the default."""
    row = width * dtype.itemsize
    block = 64 if row <= 128 else 32 if row <= 512 else 16
    return {"span": ({"BLOCK_N": block, "num_warps": 4, "num_stages": 2},)}


def most_rows(dtype: torch.dtype, width: int) -> int:
    """Rows of a tile, (head of the group, new token) pairs; more would spill."""
    return 32 if width * dtype.itemsize <= 256 else 16


@sized("T", "S", "span", "spans", "window")
def span_kernel(  # type: ignore[no-untyped-def]
    Q, K, V, LENGTHS, PARTS, LEVELS, stride_qb, stride_qt: tl.constexpr, stride_qh, stride_kb, stride_kt: tl.constexpr,
    stride_kh, stride_vb, stride_vt: tl.constexpr, stride_vh, T, S, span, spans, scale, softcap, window,
    E: tl.constexpr, H: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(1)
    heads: tl.constexpr = H // GROUP
    b = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    # row r holds new token r // GROUP for head r % GROUP of the group
    row = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = row // GROUP
    h = head * GROUP + row % GROUP
    column = tl.arange(0, BLOCK_E)
    live = row < T * GROUP
    length = tl.minimum(tl.load(LENGTHS + b).to(tl.int32), S)
    position = length - T + token
    lo = piece * span
    # in this tile of rows the last token sees the last key, and the first token's window reaches back furthest
    last = length - T + tl.minimum((tl.program_id(2) * BLOCK_M + BLOCK_M - 1) // GROUP, T - 1)
    hi = tl.minimum(lo + span, last + 1)
    if WINDOW:
        earliest = length - T + tl.program_id(2) * BLOCK_M // GROUP - window + 1
        lo = tl.maximum(lo, earliest // BLOCK_N * BLOCK_N)
    place = ((b * T + token) * H + h) * spans + piece
    if hi <= lo:
        tl.store(LEVELS + place, tl.full((BLOCK_M,), -float("inf"), ACC), mask=live)
        return
    inside = live[:, None] & (column < E)[None, :]
    Q += b * stride_qb
    q = tl.load(
        Q + (token.to(tl.int64) * stride_qt + h.to(tl.int64) * stride_qh)[:, None] + column[None, :],
        mask=inside, other=0.0,
    )  # fmt: skip
    K += b * stride_kb + head.to(tl.int64) * stride_kh
    V += b * stride_vb + head.to(tl.int64) * stride_vh
    acc = tl.zeros((BLOCK_M, BLOCK_E), dtype=ACC)
    total = tl.zeros((BLOCK_M,), dtype=ACC)
    peak = tl.full((BLOCK_M,), -float("inf"), dtype=ACC)
    # keys from hi on load as zeros, and no live row sees them: they lie after its token or in the next span
    acc, total, peak = attend_keys(
        acc, total, peak, q, K, V, stride_kt, stride_vt, lo, hi, position, hi, scale, softcap, window,
        E, True, WINDOW, SOFTCAP, True, ACC, PRECISION, BLOCK_N, BLOCK_E,
    )  # fmt: skip
    nothing = total == 0.0
    acc = acc / tl.where(nothing, 1.0, total)[:, None]
    level = tl.where(nothing, -float("inf"), peak + tl.log2(tl.where(nothing, 1.0, total)))
    tl.store(LEVELS + place, level, mask=live)
    tl.store(PARTS + place[:, None] * E + column[None, :], acc, mask=inside)


@sized("spans")
def join_kernel(  # type: ignore[no-untyped-def]
    PARTS, LEVELS, SINKS, OUT, LSE, spans,
    E: tl.constexpr, H: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program per (sequence, token, head): the spans' outputs weighted by their log-sum-exps."""
    place = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_E)
    level = tl.load(LEVELS + place * spans + piece, mask=piece < spans, other=-float("inf"))
    top = tl.max(level, axis=0)
    sink = top
    if SINKS is not None:
        sink = tl.load(SINKS + place % H).to(ACC) * 1.4426950408889634
        top = tl.maximum(top, sink)
    shift = tl.where(top == -float("inf"), 0.0, top)
    weight = tl.exp2(level - shift)
    total = tl.sum(weight, axis=0)
    if SINKS is not None:
        total += tl.exp2(sink - shift)
    # spans without visible keys stored no output: their memory is not read
    part = tl.load(
        PARTS + (place * spans + piece)[:, None] * E + column[None, :],
        mask=(weight > 0.0)[:, None] & (column < E)[None, :], other=0.0,
    )  # fmt: skip
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    out = tl.sum(part * weight[:, None], axis=0) / total
    tl.store(OUT + place * E + column, out.to(OUT.dtype.element_ty), mask=column < E)
    lse = (shift + tl.log2(total)) * 0.6931471805599453  # ln 2
    tl.store(LSE + place, tl.where(nothing, -float("inf"), lse))


def spans_of(capacity: int, block: int) -> tuple[int, int]:
    """(keys of a span, spans) of a cache: at least 256 keys each, at most SPANS spans."""
    span = max(256, -(-capacity // SPANS))
    span = -(-span // block) * block
    return span, -(-capacity // span)


def _case(q: Tensor) -> str:
    return bucket(q.dtype, E=q.shape[3])


@torch.library.custom_op("fmscale::attention_decode", mutates_args=())
def _op(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, sinks: Tensor | None, window: int, softcap: float, scale: float,
    capacity: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, T, H, E = q.shape
    S, K = k.shape[1:3]
    dtype = accumulator(q.dtype)
    out = torch.empty((B, T, H, E), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, T, H), dtype=dtype, device=q.device)
    if not out.numel():
        return out, lse
    width = block_e(E)
    launch = dict(launch_config("attention_decode", "span", q.device, _case(q), configs(q.dtype, width)["span"]))
    span, spans = spans_of(max(capacity, S, 1), launch["BLOCK_N"])
    group, acc = H // K, tl_dtype(dtype)
    block_m = min(most_rows(q.dtype, width), max(16, round_up(group * T)))
    parts = torch.empty((B, T, H, spans, E), dtype=dtype, device=q.device)
    levels = torch.empty((B, T, H, spans), dtype=dtype, device=q.device)
    with on(q.device):
        span_kernel[(B * K, spans, -(-group * T // block_m))](
            q, k, v, lengths, parts, levels, *strides(q), *strides(k), *strides(v), T, S, span, spans, scale, softcap,
            window, E=E, H=H, GROUP=group, WINDOW=window > 0, SOFTCAP=softcap > 0, ACC=acc,
            PRECISION=precision(q.dtype, E), BLOCK_M=block_m, BLOCK_E=width, **launch,
        )  # fmt: skip
        join_kernel[(B * T * H,)](
            parts, levels, sinks, out, lse, spans,
            E=E, H=H, ACC=acc, BLOCK_S=round_up(spans), BLOCK_E=width, num_warps=4,
        )  # fmt: skip
    return out, lse


@_op.register_fake
def _fake(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))


def decode_eager(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *,
    window: int, softcap: float, sinks: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention_decode` in plain torch, as (out, lse (B, T, H)): the reference, and the `eager` backend."""
    T, S = q.shape[1], k_cache.shape[1]
    key = torch.arange(S, device=q.device)
    ends = lengths.clamp(max=S)[:, None, None]
    position = ends - T + torch.arange(T, device=q.device)[:, None]
    seen = key <= position
    if window:
        seen = seen & (key > position - window)
    # cache entries past a length may be NaN, and a weight of 0 times NaN is NaN
    written = (key < ends[:, 0])[:, :, None, None]
    k, v = (cache.masked_fill(~written, 0.0) for cache in (k_cache, v_cache))
    out, lse = attend(q, k, v, seen[:, None, None], softcap=softcap, sinks=sinks, scale=scale)
    return out, lse.transpose(1, 2)


@overload
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, window: int | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, scale: float | None = None, capacity: int = 0,
    return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, window: int | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, scale: float | None = None, capacity: int = 0,
    return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, window: int | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, scale: float | None = None, capacity: int = 0,
    return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention of the newest T tokens of each sequence to its cache, without gradients.

    q (B, T, H, E), or (B, H, E) for one token; k_cache and v_cache (B, S, K, E) of capacity S, which hold the new
    tokens' keys and values already; lengths (B,) int32 or int64 on q's device: number of keys of each sequence, the
    T new keys included. Token t stands at position lengths[b] - T + t and sees keys up to its own; with `window` only
    the nearest `window` keys. Lengths above S count as S; a token before position 0 sees no key. Cache entries past a
    length are never used. H is a multiple of K; query head h reads key head h // (H // K). bf16, fp16 or fp32
    (fp64: eager and the interpreter); E up to 256; any strides, so that a cache (B, K, S, E) is passed transposed,
    without a copy.

    softcap, sinks, scale and return_lse as in `flash_attention`; the log-sum-exp is (B, T, H), or (B, H) for one token,
    fp32. Spans are cut for `capacity` keys where that is above S. Returns q's shape and dtype; rows without keys give 0
    and -inf.

    Meant for T up to some tens (decoding, speculation); prompts go to `flash_attention`. Results have the same bits
    every time and in any batch. Works under torch.compile(fullgraph=True), with no copy to the host. Raises KernelError
    for arguments that do not fit, and outside torch.no_grad() for inputs that require a gradient.
    """
    _check(q, k_cache, v_cache, lengths, window, softcap, sinks, scale)
    single = q.dim() == 3
    q4 = q[:, None] if single else q
    refusals = {"triton": numbers_refusal(q), "eager": None}
    chosen = choose("attention_decode", backend, q.device, _case(q4), refusals)
    reach = 0 if window is None else min(window, NO_WINDOW)
    cap = 0.0 if softcap is None else float(softcap)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if chosen == "eager":
        out, lse = decode_eager(q4, k_cache, v_cache, lengths, window=reach, softcap=cap, sinks=sinks, scale=scale)
    else:
        tensors = [unit(x) for x in (q4, k_cache, v_cache)]
        flat = None if sinks is None else sinks.contiguous()
        out, lse = _op(*tensors, lengths.contiguous(), flat, reach, cap, scale, capacity)
    if single:
        out, lse = out[:, 0], lse[:, 0]
    return (out, lse) if return_lse else out


def _check(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor,
    window: int | None, softcap: float | None, sinks: Tensor | None, scale: float | None,
) -> None:  # fmt: skip
    shapes = [tuple(x.shape) for x in (q, k, v)]
    fits = q.dim() in (3, 4) and k.dim() == 4 and k.shape == v.shape
    fits = fits and q.shape[0] == k.shape[0] and q.shape[-1] == k.shape[-1]
    if not fits or not k.shape[2] or q.shape[-2] % k.shape[2]:
        raise KernelError(
            "attention_decode needs q (B, T, H, E) or (B, H, E) and caches (B, S, K, E), H a multiple of K",
            found=shapes,
            remedy="A cache (B, K, S, E) is passed as cache.transpose(1, 2).",
        )
    check_alike(q, k, v, sinks, window=window, softcap=softcap, scale=scale)
    whole = lengths.dtype in (torch.int32, torch.int64)
    if lengths.shape != q.shape[:1] or not whole or lengths.device != q.device:
        raise KernelError(
            "lengths must be (B,) int32 or int64 on q's device",
            found=(tuple(lengths.shape), lengths.dtype, lengths.device),
            remedy="One number of keys per sequence, the new tokens' included.",
        )
    differentiable = [x for x in (q, k, v, sinks) if x is not None and x.requires_grad]
    if differentiable and torch.is_grad_enabled():
        raise KernelError(
            "attention_decode has no gradient",
            found="a tensor that requires one",
            remedy="Decode under torch.no_grad() or inference_mode(), or train with flash_attention().",
        )
