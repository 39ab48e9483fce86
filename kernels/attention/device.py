"""Device functions shared by the attention kernels: documents, schedules, ranges, masks, soft-cap.

Words: a document has `length_q` queries and `length_k` keys; query row m stands at key position
m + length_k - length_q (the last query sees the last key, as in flash-attention since 2.1).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from fmscale.kernels.launch import INTERPRETED, Kernel, jit, tl, triton_refusal

from fmscale.errors import KernelError

Launch = dict[str, Any]

WIDEST = 256
"""Largest head dim."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Bits of a tile's sort key: work 20, document 22, tile in the document 21; 63 in all, so the key is positive.
DOCUMENTS_LIMIT = 2**22 - 2
"""Most documents in one call."""
TOKENS_LIMIT = 2**25
"""Most packed tokens in one call: 2^21 tiles of 16."""
# Longer than any document; position + window stays within 32 bits.
NO_WINDOW = 2**30
# A tile has at most 128 rows. Offsets within a tile are 32-bit, offsets between tiles are 64-bit.
FAR = 2**24


def sized(*names: str) -> Callable[[Callable[..., None]], Kernel]:
    """`jit` without a recompilation for new values of the integers `names` (token and document counts)."""

    return functools.partial(Kernel, do_not_specialize=list(names))


@jit
def place(  # type: ignore[no-untyped-def]
    pid, TILES, tiles, heads, section, H: tl.constexpr, LAST_FIRST: tl.constexpr
):
    """(sequence, head, document, tile in it) of program `pid`, of H heads a sequence.

    The tiles of `section` heads, whose keys fit into L2, come before the tiles of the next heads. With documents, TILES
    lists the tiles, the heaviest first, some behind the last document. LAST_FIRST reverses the order of a dense call.
    """
    first = pid // (tiles * section) * section
    inner = pid - first * tiles
    width = tl.minimum(section, heads - first)
    tile = inner // width
    bh = first + inner % width
    b = (bh // H).to(tl.int64)
    h = bh % H
    document = tile * 0
    if TILES is not None:
        b = b * 0
        h = bh
        key = tl.load(TILES + tile)
        document = ((key >> 21) & 4194303).to(tl.int32)
        tile = (key & 2097151).to(tl.int32)
    elif LAST_FIRST:
        tile = tiles - 1 - tile
    return b, h, document, tile


@jit
def extent(CU, document, documents, total):  # type: ignore[no-untyped-def]
    """(first token, tokens) of a document; document number `documents` is the rest behind the last document.

    Both are clamped to the tensor, so that invalid offsets give a wrong result, never an access out of bounds. Without
    offsets the whole tensor is one document.
    """
    if CU is None:
        return document * 0, document * 0 + total
    else:
        first = tl.load(CU + document).to(tl.int32)
        end = tl.load(CU + document + 1, mask=document < documents, other=total).to(tl.int32)
        first = tl.minimum(tl.maximum(first, 0), total)
        return first, tl.minimum(tl.maximum(end, first), total) - first


@jit
def key_range(  # type: ignore[no-untyped-def]
    m0, length_q, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr
):
    """Keys [lo, hi) that some query of rows m0 .. m0 + BLOCK - 1 sees."""
    offset = length_k - length_q
    last = tl.minimum(m0 + BLOCK, length_q) - 1 + offset
    lo = m0 * 0
    hi = lo + length_k
    if CAUSAL:
        hi = tl.minimum(hi, last + 1)
    elif WINDOW:
        hi = tl.minimum(hi, last + window)
    if WINDOW:
        lo = tl.maximum(m0 + offset - window + 1, 0)
    return lo, tl.maximum(hi, lo)


@jit
def key_parts(  # type: ignore[no-untyped-def]
    m0, length_q, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bounds lo, full_lo, full_hi, hi of `key_range`: no mask touches the tiles from full_lo to full_hi."""
    lo, hi = key_range(m0, length_q, length_k, window, CAUSAL, WINDOW, BLOCK_M)
    lo = lo // BLOCK_N * BLOCK_N
    first = m0 + length_k - length_q
    full_hi = length_k
    if CAUSAL:
        full_hi = tl.minimum(full_hi, first + 1)
    elif WINDOW:
        full_hi = tl.minimum(full_hi, first + window)
    full_hi = tl.maximum(tl.maximum(full_hi, 0) // BLOCK_N * BLOCK_N, lo)
    full_lo = lo
    if WINDOW:
        last = tl.minimum(m0 + BLOCK_M, length_q) - 1 + length_k - length_q
        full_lo = (tl.maximum(last - window + 1, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        full_lo = tl.minimum(tl.maximum(full_lo, lo), full_hi)
    return lo, full_lo, full_hi, hi


@jit
def query_range(  # type: ignore[no-untyped-def]
    n0, length_q, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr
):
    """Queries [lo, hi) that see some key of n0 .. n0 + BLOCK - 1."""
    offset = length_k - length_q
    last = tl.minimum(n0 + BLOCK, length_k) - 1
    lo = n0 * 0
    hi = lo + length_q
    if CAUSAL:
        lo = tl.maximum(n0 - offset, 0)
    elif WINDOW:
        lo = tl.maximum(n0 - offset - window + 1, 0)
    if WINDOW:
        hi = tl.minimum(hi, last + window - offset)
    return lo, tl.maximum(hi, lo)


@jit
def near(position, key, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """True where the query at key position `position` sees `key` by causality, by window, or by both."""
    if CAUSAL:
        seen = key <= position
        if WINDOW:
            seen = seen & (key > position - window)
    else:
        seen = (key > position - window) & (key < position + window)
    return seen


@jit
def visible(  # type: ignore[no-untyped-def]
    position, key, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr
):
    """Mask (queries, keys): the key exists and is `near`; in causal masks, `near` keys always exist."""
    seen = key[None, :] < length_k
    if CAUSAL:
        seen = near(position[:, None], key[None, :], window, CAUSAL, WINDOW)
    elif WINDOW:
        seen = seen & near(position[:, None], key[None, :], window, CAUSAL, WINDOW)
    return seen


@jit
def tanh(x, PRECISE: tl.constexpr):  # type: ignore[no-untyped-def]
    """tanh by exp2. PRECISE, for fp32 inputs, takes a series near 0, where exp2 loses relative precision."""
    y = 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.885390081777927))  # 2 log2 e; right at both infinities
    if PRECISE:
        z = tl.minimum(x * x, 0.1225)
        series = 0.021869488536155203 + z * -0.008863235529902197
        series = -0.05396825396825397 + z * series
        series = -0.3333333333333333 + z * (0.13333333333333333 + z * series)
        y = tl.where(tl.abs(x) < 0.35, x + x * (z * series), y)
    return y


@jit
def attend_keys(  # type: ignore[no-untyped-def]
    acc, total, peak, q, K, V, stride_kt, stride_vt, lo, hi, position, length_k, scale, softcap, window,
    E: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Add keys lo (a multiple of BLOCK_N) to hi to the weighted sum, its total and the running maximum."""
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_E)
    offset_k = row[:, None] * stride_kt + column[None, :]
    offset_v = row[:, None] * stride_vt + column[None, :]
    hop_k = tl.full((), BLOCK_N, tl.int64) * stride_kt
    hop_v = tl.full((), BLOCK_N, tl.int64) * stride_vt
    K += lo.to(tl.int64) * stride_kt
    V += lo.to(tl.int64) * stride_vt
    factor = scale * 1.4426950408889634  # log2 e
    if SOFTCAP:
        factor = softcap * 1.4426950408889634
    for n0 in range(lo, hi, BLOCK_N):
        key = n0 + row
        inside = (key < length_k)[:, None]
        if E < BLOCK_E:
            inside = inside & (column < E)[None, :]
        if MASKED:
            k = tl.load(K + offset_k, mask=inside, other=0.0)
        elif E < BLOCK_E:
            k = tl.load(K + offset_k, mask=(column < E)[None, :], other=0.0)
        else:
            k = tl.load(K + offset_k)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        if SOFTCAP:
            s = tanh(s * (scale / softcap), q.dtype == tl.float32)
        if MASKED:
            seen = visible(position, key, length_k, window, CAUSAL, WINDOW)
            s = tl.where(seen, s, -float("inf"))
        top = tl.maximum(peak, tl.max(s, axis=1) * factor)
        shift = top
        if MASKED:
            shift = tl.where(top == -float("inf"), 0.0, top)  # -inf - -inf is NaN
        p = tl.exp2(s * factor - shift[:, None])
        decay = tl.exp2(peak - shift)
        total = total * decay + tl.sum(p, axis=1)
        acc = acc * decay[:, None]
        if MASKED:
            v = tl.load(V + offset_v, mask=inside, other=0.0)
        elif E < BLOCK_E:
            v = tl.load(V + offset_v, mask=(column < E)[None, :], other=0.0)
        else:
            v = tl.load(V + offset_v)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION, out_dtype=ACC)
        peak = top
        K += hop_k
        V += hop_v
    return acc, total, peak


def numbers_refusal(q: torch.Tensor) -> str | None:
    """Reason why Triton's kernels cannot take q's dtype or head dim on its device, or None."""
    if q.dtype not in FLOATS and not (INTERPRETED and q.dtype == torch.float64):
        return f"{q.dtype} (it takes fp16, bf16 and fp32)"
    if q.shape[-1] > WIDEST:
        return f"a head dim of {q.shape[-1]} (at most {WIDEST})"
    return triton_refusal(q.device, q.dtype)


def check_alike(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, **numbers: Any) -> None:
    """Raise KernelError unless q, k, v share dtype and device, sinks fit q's heads and numbers are positive or None."""
    if not (q.dtype == k.dtype == v.dtype) or not (q.device == k.device == v.device):
        found = [(x.dtype, x.device) for x in (q, k, v)]
        raise KernelError(
            "queries, keys and values differ in dtype or device", found=found, remedy="Cast or move them."
        )
    if sinks is not None and (sinks.shape != q.shape[-2:-1] or sinks.device != q.device):
        raise KernelError("sinks need one number per query head", found=tuple(sinks.shape), remedy=f"({q.shape[-2]},)")
    for name, number in numbers.items():
        if number is not None and not (0 < number < math.inf):
            raise KernelError(f"{name} must be positive", found=number, remedy="None turns it off.")


def precision(dtype: torch.dtype, E: int) -> str:
    """Precision of products: for fp32, three TF32 products keep fp32's accuracy on tensor cores.

    The halves of their operands take registers, which spill above a head dim of 128: there products are plain fp32.
    """
    return "tf32x3" if dtype == torch.float32 and E <= 128 else "ieee"


def block_e(E: int) -> int:
    """Padded head dim. At least 64: rows of 32 16-bit elements are miscompiled (`benchmarks/compile_gate`)."""
    return max(64, 1 << (E - 1).bit_length())


def per_section(heads: int, bytes_per_head: int) -> int:
    """Number of heads that run side by side, few enough for their shared tensors to stay in L2.

    They get 32 MiB of the 50 MiB of a Hopper; the rest holds the tensors that stream through.
    """
    return max(1, min(heads, 2**25 // max(1, bytes_per_head)))


def strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of x (B, T, H, E) without the last stride, which is 1."""
    return x.stride(0), x.stride(1), x.stride(2)


def unit(x: torch.Tensor) -> torch.Tensor:
    """`x` itself where a tile's offsets fit into 32 bits and the last stride is 1, else a copy."""
    return x if x.stride(-1) == 1 and x.stride(1) < FAR else x.contiguous()
