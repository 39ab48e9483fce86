"""Attention forward: output and log-sum-exp in one pass over the keys, with a running maximum.

Source: Dao, "FlashAttention-2", arXiv 2307.08691, algorithm 1; sinks as an extra key without a value (Xiao et al.,
arXiv 2309.17453; learnable per head as in gpt-oss). Exponentials are base 2, with log2 e folded into the scale. Tiles
that no mask touches run in a loop of their own without mask code.
"""

import torch
from fmscale.kernels.attention.configs import chosen
from fmscale.kernels.attention.device import (
    attend_keys,
    block_e,
    extent,
    key_parts,
    per_section,
    place,
    precision,
    sized,
    strides,
)
from fmscale.kernels.attention.tiles import tile_list
from fmscale.kernels.launch import accumulator, on, tl, tl_dtype
from torch import Tensor


@sized("T", "S", "documents", "tiles", "section", "window")
def forward_kernel(  # type: ignore[no-untyped-def]
    Q, K, V, SINKS, OUT, LSE, LEVEL, REST, CU_Q, CU_K, TILES, stride_qb, stride_qt: tl.constexpr, stride_qh, stride_kb,
    stride_kt: tl.constexpr, stride_kh, stride_vb, stride_vt: tl.constexpr, stride_vh, T, S, heads, documents, tiles,
    section, scale, softcap, window, E: tl.constexpr, H: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    b, h, document, tile = place(tl.program_id(0), TILES, tiles, heads, section, H, CAUSAL)
    if TILES is not None and document > documents:
        return
    start_q, length_q = extent(CU_Q, document, documents, T)
    start_k, length_k = extent(CU_K, document, documents, S)
    if TILES is not None:
        length_k = tl.where(document < documents, length_k, 0)
    m0 = tile * BLOCK_M
    row = m0 + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_E)
    inside = (row < length_q)[:, None] & (column < E)[None, :]
    # 64-bit to the tile, 32-bit within it: fewer registers
    token = start_q.to(tl.int64) + m0
    line = tl.arange(0, BLOCK_M)
    Q += b * stride_qb + h.to(tl.int64) * stride_qh + token * stride_qt
    q = tl.load(Q + (line[:, None] * stride_qt + column[None, :]), mask=inside, other=0.0)
    head_k = (h // GROUP).to(tl.int64)
    K += b * stride_kb + head_k * stride_kh + start_k.to(tl.int64) * stride_kt
    V += b * stride_vb + head_k * stride_vh + start_k.to(tl.int64) * stride_vt

    position = row + (length_k - length_q)
    bounds = key_parts(m0, length_q, length_k, window, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_E), dtype=ACC)
    total = tl.zeros((BLOCK_M,), dtype=ACC)
    peak = tl.full((BLOCK_M,), -float("inf"), dtype=ACC)
    for part in tl.static_range(3):  # masked, unmasked, masked tiles; without a window the first part is empty
        if WINDOW or part > 0:
            acc, total, peak = attend_keys(
                acc, total, peak, q, K, V, stride_kt, stride_vt, bounds[part], bounds[part + 1], position, length_k,
                scale, softcap, window, E, CAUSAL, WINDOW, SOFTCAP, part != 1, ACC, PRECISION, BLOCK_N, BLOCK_E,
            )  # fmt: skip

    if SINKS is not None:
        sink = tl.load(SINKS + h).to(ACC) * 1.4426950408889634
        top = tl.maximum(peak, sink)
        shift = tl.where(top == -float("inf"), 0.0, top)
        decay = tl.exp2(peak - shift)
        total = total * decay + tl.exp2(sink - shift)
        acc = acc * decay[:, None]
        peak = top
    lse = (peak + tl.log2(total)) * 0.6931471805599453  # ln 2
    nothing = total == 0.0
    lse = tl.where(nothing, -float("inf"), lse)
    if LEVEL is not None:
        at = ((b * H + h) * T + token) + line
        tl.store(LEVEL + at, tl.where(nothing, float("inf"), peak), mask=row < length_q)
        tl.store(REST + at, tl.log2(tl.where(nothing, 1.0, total)), mask=row < length_q)
    acc = acc / tl.where(nothing, 1.0, total)[:, None]
    OUT += ((b * T + token) * H + h) * E
    to = line[:, None] * (H * E) + column[None, :]
    tl.store(OUT + to, acc.to(OUT.dtype.element_ty), mask=inside)
    tl.store(LSE + ((b * H + h) * T + token) + line, lse, mask=row < length_q)


def level_shape(q: Tensor) -> tuple[int, ...]:
    """Shape of the level that `forward` returns for q (B, T, H, E)."""
    B, T, H, _ = q.shape
    return (2, B, H, T) if q.dtype.itemsize > 2 else (0,)


@torch.library.custom_op("fmscale::attention", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None,
    causal: bool, window: int, softcap: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B, T, H, E), log-sum-exp (B, H, T) and level of q (B, T, H, E), k and v (B, S, K, E).

    The level (2, B, H, T), empty except for fp32, is the log-sum-exp in base 2 as a sum of two numbers, the running
    maximum and the rest; rows without keys have +inf and 0. The backward computes a probability from the difference of
    score and level: a single number near 60 has room for five digits of this difference, fp32 scores have seven.

    With documents B is 1. The last stride of q, k and v is 1; a window or softcap of 0 is off.
    """
    B, T, H, E = q.shape
    S, K = k.shape[1:3]
    acc = accumulator(q.dtype)
    out = torch.empty((B, T, H, E), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, H, T), dtype=acc, device=q.device)
    level = lse.new_empty(level_shape(q))
    if not out.numel():
        return out, lse, level
    launch = chosen("forward", q, cu_q, sinks, causal=causal, window=window, softcap=softcap)
    parts = level if level.numel() else (None, None)
    documents = cu_q.numel() - 1 if cu_q is not None else 0
    listed, tiles = tile_list(cu_q, cu_k, T, S, block=launch["BLOCK_M"], keys=False, causal=causal, window=window)
    group = H // K
    section = group * per_section(B * K, 2 * S * E * k.element_size())
    with on(q.device):
        forward_kernel[(tiles * B * H,)](
            q, k, v, sinks, out, lse, *parts, cu_q, cu_k, listed, *strides(q), *strides(k), *strides(v), T, S, B * H,
            documents, tiles, section, scale, softcap, window, E=E, H=H, GROUP=group, CAUSAL=causal, WINDOW=window > 0,
            SOFTCAP=softcap > 0, ACC=tl_dtype(acc), PRECISION=precision(q.dtype, E), BLOCK_E=block_e(E), **launch,
        )  # fmt: skip
    return out, lse, level


@forward.register_fake
def _fake(q: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulator(q.dtype)
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=acc)
    return q.new_empty(q.shape), lse, q.new_empty(level_shape(q), dtype=acc)
