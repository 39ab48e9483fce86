"""Attention backward in two passes, so that no two programs ever add to the same number.

Source: Dao, "FlashAttention-2", arXiv 2307.08691, algorithm 2, split into dK/dV (one program per key tile, over the
queries of every head of its group) and dQ (one per query tile, over keys). The split recomputes two of five products;
in exchange the result's bits do not depend on scheduling. The first pass forms scores as S^T = K Q^T and the second as
S = Q K^T, so that probabilities go from registers into the next product as its left operand, without a transposition:
Triton 3.4 to 3.7.0 miscompile that transposition on Hopper (flash-linear-attention issue 640).
"""

import torch
from fmscale.kernels.attention.configs import chosen
from fmscale.kernels.attention.device import (
    block_e,
    extent,
    key_parts,
    near,
    per_section,
    place,
    precision,
    query_range,
    sized,
    strides,
    tanh,
    visible,
)
from fmscale.kernels.attention.tiles import tile_list
from fmscale.kernels.launch import jit, on, tl, tl_dtype
from torch import Tensor


@sized("T", "blocks")
def delta_kernel(  # type: ignore[no-untyped-def]
    OUT, DOUT, LSE, DLSE, SINKS, DELTA, LEVEL, REST, DSINKS, stride_b, stride_t, stride_h, T, blocks,
    E: tl.constexpr, H: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Store per row delta = sum(dO * O) - dLSE and the level: LSE in base 2, but +inf for an LSE of -inf, so that
    exp2(s - level) is 0 in rows without keys. Store per block its share of the sink's gradient.

    With REST the forward has stored the level, in two parts, and this kernel reads it.
    """
    block = tl.program_id(0) % blocks
    bh = (tl.program_id(0) // blocks).to(tl.int64)
    b = bh // H
    h = bh % H
    row = block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    column = tl.arange(0, BLOCK_E)
    inside = (row < T)[:, None] & (column < E)[None, :]
    out = OUT + ((b * T + row)[:, None] * H + h) * E + column[None, :]
    dout = DOUT + b * stride_b + h * stride_h + row[:, None] * stride_t + column[None, :]
    o = tl.load(out, mask=inside, other=0.0).to(ACC)
    do = tl.load(dout, mask=inside, other=0.0).to(ACC)
    delta = tl.sum(o * do, axis=1)
    if DLSE is not None:
        delta -= tl.load(DLSE + bh * T + row, mask=row < T, other=0.0)
    lse = tl.load(LSE + bh * T + row, mask=row < T, other=float("inf"))
    nothing = lse == -float("inf")
    # the gradient of the log-sum-exp of a row without keys may be NaN, and 0 * NaN is NaN
    delta = tl.where(nothing, 0.0, delta)
    tl.store(DELTA + bh * T + row, delta, mask=row < T)
    if REST is not None:
        level = tl.load(LEVEL + bh * T + row, mask=row < T, other=float("inf"))
    else:
        level = tl.where(nothing, float("inf"), lse * 1.4426950408889634)
        tl.store(LEVEL + bh * T + row, level, mask=row < T)
    if SINKS is not None:
        share = tl.load(SINKS + h).to(ACC) * 1.4426950408889634 - level
        if REST is not None:
            share -= tl.load(REST + bh * T + row, mask=row < T, other=0.0)
        share = tl.exp2(share) * delta
        tl.store(DSINKS + bh * blocks + block, -tl.sum(share, axis=0))


@sized("T", "S", "documents", "tiles", "section", "window")
def dkdv_kernel(  # type: ignore[no-untyped-def]
    Q, K, V, DOUT, LEVEL, REST, DELTA, DK, DV, CU_Q, CU_K, TILES, stride_qb, stride_qt: tl.constexpr, stride_qh,
    stride_kb, stride_kt: tl.constexpr, stride_kh, stride_vb, stride_vt: tl.constexpr, stride_vh, stride_ob,
    stride_ot: tl.constexpr, stride_oh, T, S, heads, documents, tiles, section, scale, softcap, window, E: tl.constexpr,
    H: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    b, h, document, tile = place(tl.program_id(0), TILES, tiles, heads, section, H // GROUP, False)
    if TILES is not None and document > documents:
        return
    start_q, length_q = extent(CU_Q, document, documents, T)
    start_k, length_k = extent(CU_K, document, documents, S)
    if TILES is not None:
        length_q = tl.where(document < documents, length_q, 0)
    n0 = tile * BLOCK_N
    key = n0 + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_E)
    inside = (key < length_k)[:, None] & (column < E)[None, :]
    # 64-bit to the tile, 32-bit within it: fewer registers
    token = start_k.to(tl.int64) + n0
    entry = tl.arange(0, BLOCK_N)[:, None]
    head_k = h.to(tl.int64)
    K += b * stride_kb + head_k * stride_kh + token * stride_kt
    V += b * stride_vb + head_k * stride_vh + token * stride_vt
    k = tl.load(K + (entry * stride_kt + column[None, :]), mask=inside, other=0.0)
    v = tl.load(V + (entry * stride_vt + column[None, :]), mask=inside, other=0.0)

    # One loop runs over all heads of the group and their rows. A loop per head costs ten registers, which spill at
    # E 128, and drains the pipeline between heads; a division of a step number by rows costs registers too. Keys past
    # the end need no mask: their rows of dK and dV are not stored.
    lo, hi = query_range(n0, length_q, length_k, window, CAUSAL, WINDOW, BLOCK_N)
    lo = lo // BLOCK_M * BLOCK_M
    steps = (hi - lo + BLOCK_M - 1) // BLOCK_M
    position = key - length_k + length_q
    line = tl.arange(0, BLOCK_M)
    offset_q = line[:, None] * stride_qt + column[None, :]
    offset_o = line[:, None] * stride_ot + column[None, :]
    first = start_q.to(tl.int64)
    Q += b * stride_qb + head_k * GROUP * stride_qh + first * stride_qt
    DOUT += b * stride_ob + head_k * GROUP * stride_oh + first * stride_ot
    LEVEL += (b * H + h * GROUP) * T + first
    if REST is not None:
        REST += (b * H + h * GROUP) * T + first
    DELTA += (b * H + h * GROUP) * T + first
    dk = tl.zeros((BLOCK_N, BLOCK_E), dtype=ACC)
    dv = tl.zeros((BLOCK_N, BLOCK_E), dtype=ACC)
    g = first * 0
    m0 = lo
    for _ in range(GROUP * steps):
        row = m0 + line
        live = (row < length_q)[:, None]
        if E < BLOCK_E:
            live = live & (column < E)[None, :]
        q = tl.load(Q + g * stride_qh + m0.to(tl.int64) * stride_qt + offset_q, mask=live, other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC)
        # rows past the end: exp2(s - inf) is 0 without a mask
        level = tl.load(LEVEL + g * T + row, mask=row < length_q, other=float("inf"))
        if SOFTCAP:
            s = tanh(s * (scale / softcap), q.dtype == tl.float32)
            p = s * (softcap * 1.4426950408889634) - level[None, :]
        else:
            p = s * (scale * 1.4426950408889634) - level[None, :]
        if REST is not None:
            p -= tl.load(REST + g * T + row, mask=row < length_q, other=0.0)[None, :]
        p = tl.exp2(p)
        if CAUSAL or WINDOW:
            p = tl.where(near(row[None, :], position[:, None], window, CAUSAL, WINDOW), p, 0.0)
        low = p.to(q.dtype)
        if SOFTCAP:
            p = p * (1.0 - s * s)  # here, so that s need not outlive the next product
        do = tl.load(DOUT + g * stride_oh + m0.to(tl.int64) * stride_ot + offset_o, mask=live, other=0.0)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION, out_dtype=ACC)
        dv = tl.dot(low, do, dv, input_precision=PRECISION, out_dtype=ACC)
        delta = tl.load(DELTA + g * T + row, mask=row < length_q, other=0.0)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION, out_dtype=ACC)
        m0 += BLOCK_M
        over = m0 >= hi
        m0 = tl.where(over, lo, m0)
        g += over.to(tl.int64)
    dk = dk * scale
    base = ((b * S + token) * (H // GROUP) + h) * E
    to = entry * (H // GROUP * E) + column[None, :]
    tl.store(DK + base + to, dk.to(DK.dtype.element_ty), mask=inside)
    tl.store(DV + base + to, dv.to(DV.dtype.element_ty), mask=inside)


@jit
def _dq(  # type: ignore[no-untyped-def]
    dq, q, do, level, rest, delta, K, V, stride_kt, stride_vt, lo, hi, position, length_k, scale, softcap, window,
    E: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    SPLIT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    line = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_E)
    offset_k = line[:, None] * stride_kt + column[None, :]
    offset_v = line[:, None] * stride_vt + column[None, :]
    hop_k = tl.full((), BLOCK_N, tl.int64) * stride_kt
    hop_v = tl.full((), BLOCK_N, tl.int64) * stride_vt
    K += lo.to(tl.int64) * stride_kt
    V += lo.to(tl.int64) * stride_vt
    for n0 in range(lo, hi, BLOCK_N):
        key = n0 + line
        inside = (key < length_k)[:, None]
        if E < BLOCK_E:
            inside = inside & (column < E)[None, :]
        k = tl.load(K + offset_k, mask=inside, other=0.0)
        v = tl.load(V + offset_v, mask=inside, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
        dp = dp - delta[:, None]
        if SOFTCAP:
            t = tanh(s * (scale / softcap), q.dtype == tl.float32)
            dp = dp * (1.0 - t * t)
            p = t * (softcap * 1.4426950408889634) - level[:, None]
        else:
            p = s * (scale * 1.4426950408889634) - level[:, None]
        if SPLIT:
            p -= rest[:, None]
        p = tl.exp2(p)
        if MASKED:
            p = tl.where(visible(position, key, length_k, window, CAUSAL, WINDOW), p, 0.0)
        dq = tl.dot((p * dp).to(k.dtype), k, dq, input_precision=PRECISION, out_dtype=ACC)
        K += hop_k
        V += hop_v
    return dq


@sized("T", "S", "documents", "tiles", "section", "window")
def dq_kernel(  # type: ignore[no-untyped-def]
    Q, K, V, DOUT, LEVEL, REST, DELTA, DQ, CU_Q, CU_K, TILES, stride_qb, stride_qt: tl.constexpr, stride_qh, stride_kb,
    stride_kt: tl.constexpr, stride_kh, stride_vb, stride_vt: tl.constexpr, stride_vh, stride_ob,
    stride_ot: tl.constexpr, stride_oh, T, S, heads, documents, tiles, section, scale, softcap, window, E: tl.constexpr,
    H: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
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
    token = start_q.to(tl.int64) + m0
    line = tl.arange(0, BLOCK_M)
    Q += b * stride_qb + h.to(tl.int64) * stride_qh + token * stride_qt
    DOUT += b * stride_ob + h.to(tl.int64) * stride_oh + token * stride_ot
    q = tl.load(Q + (line[:, None] * stride_qt + column[None, :]), mask=inside, other=0.0)
    do = tl.load(DOUT + (line[:, None] * stride_ot + column[None, :]), mask=inside, other=0.0)
    level = tl.load(LEVEL + ((b * H + h) * T + token) + line, mask=row < length_q, other=float("inf"))
    rest = level
    if REST is not None:
        rest = tl.load(REST + ((b * H + h) * T + token) + line, mask=row < length_q, other=0.0)
    delta = tl.load(DELTA + ((b * H + h) * T + token) + line, mask=row < length_q, other=0.0)
    head_k = (h // GROUP).to(tl.int64)
    K += b * stride_kb + head_k * stride_kh + start_k.to(tl.int64) * stride_kt
    V += b * stride_vb + head_k * stride_vh + start_k.to(tl.int64) * stride_vt

    position = row + (length_k - length_q)
    bounds = key_parts(m0, length_q, length_k, window, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    dq = tl.zeros((BLOCK_M, BLOCK_E), dtype=ACC)
    for part in tl.static_range(3):  # as in the forward
        if WINDOW or part > 0:
            dq = _dq(
                dq, q, do, level, rest, delta, K, V, stride_kt, stride_vt, bounds[part], bounds[part + 1], position,
                length_k, scale, softcap, window, E, CAUSAL, WINDOW, SOFTCAP, part != 1, REST is not None, ACC,
                PRECISION, BLOCK_N, BLOCK_E,
            )  # fmt: skip
    dq = dq * scale
    DQ += ((b * T + token) * H + h) * E
    tl.store(DQ + (line[:, None] * (H * E) + column[None, :]), dq.to(DQ.dtype.element_ty), mask=inside)


@torch.library.custom_op("fmscale::attention_backward", mutates_args=())
def backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, level: Tensor,
    sinks: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None,
    causal: bool, window: int, softcap: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and sinks (empty if None); shapes and `level` as in `forward`, `dlse` (B, H, T) or None.

    Extra memory: delta and level (B, H, T) in fp32, and one number per head and 64 rows for the sinks.
    """
    B, T, H, E = q.shape
    S, K = k.shape[1:3]
    dkdv, dq = (
        chosen(kernel, q, cu_q, sinks, causal=causal, window=window, softcap=softcap) for kernel in ("dkdv", "dq")
    )
    group = H // K
    gq, gk, gv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    level, rest = level if level.numel() else (torch.empty_like(lse), None)
    blocks = -(-T // 64)
    shares = lse.new_empty((B, H, blocks)) if sinks is not None else None
    acc, width = tl_dtype(lse.dtype), block_e(E)
    documents = cu_q.numel() - 1 if cu_q is not None else 0
    shared = {
        "E": E, "H": H, "GROUP": group, "CAUSAL": causal, "WINDOW": window > 0, "SOFTCAP": softcap > 0,
        "ACC": acc, "PRECISION": precision(q.dtype, E), "BLOCK_E": width,
    }  # fmt: skip
    moves = (*strides(q), *strides(k), *strides(v), *strides(dout))
    with on(q.device):
        if gq.numel():
            delta_kernel[(blocks * B * H,)](
                out, dout, lse, dlse, sinks, delta, level, rest, shares, *strides(dout), T, blocks,
                E=E, H=H, ACC=acc, BLOCK_M=64, BLOCK_E=width, num_warps=4,
            )  # fmt: skip
        if gk.numel():
            listed, tiles = tile_list(cu_k, cu_q, S, T, block=dkdv["BLOCK_N"], keys=True, causal=causal, window=window)
            section = per_section(B * K, 2 * T * E * group * q.element_size())
            dkdv_kernel[(tiles * B * K,)](
                q, k, v, dout, level, rest, delta, gk, gv, cu_q, cu_k, listed, *moves,
                T, S, B * K, documents, tiles, section, scale, softcap, window, **shared, **dkdv,
            )  # fmt: skip
        if gq.numel():
            listed, tiles = tile_list(cu_q, cu_k, T, S, block=dq["BLOCK_M"], keys=False, causal=causal, window=window)
            section = group * per_section(B * K, 2 * S * E * k.element_size())
            dq_kernel[(tiles * B * H,)](
                q, k, v, dout, level, rest, delta, gq, cu_q, cu_k, listed, *moves,
                T, S, B * H, documents, tiles, section, scale, softcap, window, **shared, **dq,
            )  # fmt: skip
    if sinks is None or shares is None:
        return gq, gk, gv, q.new_empty(0)
    return gq, gk, gv, shares.sum(dim=(0, 2)).to(sinks.dtype)


@backward.register_fake
def _fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, level: Tensor,
    sinks: Tensor | None, *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dsinks = q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dsinks
