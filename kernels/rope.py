"""Rotary position embedding of queries and keys, with an optional norm of each head before it.

Source: Su et al., "RoFormer", arXiv 2104.09864; the per-head norm of q and k: Henry et al., "Query-Key Normalization
for Transformers", arXiv 2010.04245. The kernel reduces angles to a quarter turn in fp64: there is no table to build,
no largest position and no loss of phase, while fp32 angles are off by 8e-3 rad at position 131,072.
"""

from typing import Any

import torch
from fmscale.kernels.dispatch import Config, bucket, choose, launch_config, settled
from fmscale.kernels.launch import accumulator, jit, on, round_up, tl, tl_dtype, triton_refusal
from fmscale.kernels.rms_norm import sum_partials
from fmscale.kernels.rope_eager import kept_turns, rope_eager, rope_turns
from torch import Tensor

from fmscale.errors import KernelError


@jit
def _rotation(position, TURNS, half, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, HALF)
    turns = position.to(tl.float64) * tl.load(TURNS + i, mask=i < half, other=0.0)
    quarters = tl.floor(turns * 4.0 + 0.5)
    angle = ((turns - quarters * 0.25) * 6.283185307179586).to(tl.float32)
    # Cephes' sinf and cosf on [-pi/4, pi/4], error 1e-7; libdevice's have a slow path that needs local memory
    z = angle * angle
    sine = angle + angle * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cosine = 4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5)
    cosine = 1.0 - 0.5 * z + z * z * cosine
    quadrant = quarters.to(tl.int64) & 3
    swapped = (quadrant & 1) == 1
    c = tl.where(swapped, sine, cosine)
    s = tl.where(swapped, cosine, sine)
    c = tl.where((quadrant == 1) | (quadrant == 2), -c, c)
    s = tl.where(quadrant >= 2, -s, s)
    return c[None, :], s[None, :]


@jit
def _columns(half, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, HALF)
    if INTERLEAVED:
        return 2 * i, 2 * i + 1
    else:
        return i, i + half


@jit
def _rotate_heads(  # type: ignore[no-untyped-def]
    X, Y, W, heads, half, stride, c, s, eps, NORM: tl.constexpr, INTERLEAVED: tl.constexpr, ACC: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    first, second = _columns(half, INTERLEAVED, HALF)
    in_half = tl.arange(0, HALF) < half
    for start in range(0, heads, HEADS):  # 64-bit: in (H, T, E) order the stride of a head spans all tokens
        head = (start + tl.arange(0, HEADS)).to(tl.int64)
        inside = (head < heads)[:, None] & in_half[None, :]
        a = tl.load(X + head[:, None] * stride + first[None, :], mask=inside, other=0.0).to(ACC)
        b = tl.load(X + head[:, None] * stride + second[None, :], mask=inside, other=0.0).to(ACC)
        if NORM:
            rstd = 1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * half) + eps)
            a = a * rstd[:, None] * tl.load(W + first, mask=in_half, other=0.0).to(ACC)[None, :]
            b = b * rstd[:, None] * tl.load(W + second, mask=in_half, other=0.0).to(ACC)[None, :]
        y = Y + head[:, None] * (2 * half)
        tl.store(y + first[None, :], (a * c - b * s).to(Y.dtype.element_ty), mask=inside)
        tl.store(y + second[None, :], (b * c + a * s).to(Y.dtype.element_ty), mask=inside)


@jit
def _rope_kernel(  # type: ignore[no-untyped-def]
    Q, K, QY, KY, QW, KW, POSITIONS, TURNS, q_heads, k_heads, half, q_token, q_head, k_token, k_head, eps,
    INVERSE: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr, ACC: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    c, s = _rotation(tl.load(POSITIONS + token), TURNS, half, HALF)
    c, s = c.to(ACC), s.to(ACC)
    if INVERSE:
        s = -s
    _rotate_heads(
        Q + token * q_token, QY + token * q_heads * 2 * half, QW, q_heads, half, q_head, c, s, eps,
        NORM, INTERLEAVED, ACC, HEADS, HALF,
    )  # fmt: skip
    _rotate_heads(
        K + token * k_token, KY + token * k_heads * 2 * half, KW, k_heads, half, k_head, c, s, eps,
        NORM, INTERLEAVED, ACC, HEADS, HALF,
    )  # fmt: skip


@jit
def _norm_heads_backward(  # type: ignore[no-untyped-def]
    DY, X, DX, W, heads, half, stride_dy, stride_x, c, s, eps, da_w, db_w,
    INTERLEAVED: tl.constexpr, ACC: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    first, second = _columns(half, INTERLEAVED, HALF)
    in_half = tl.arange(0, HALF) < half
    wa = tl.load(W + first, mask=in_half, other=0.0).to(ACC)[None, :]
    wb = tl.load(W + second, mask=in_half, other=0.0).to(ACC)[None, :]
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS)).to(tl.int64)
        inside = (head < heads)[:, None] & in_half[None, :]
        a = tl.load(X + head[:, None] * stride_x + first[None, :], mask=inside, other=0.0).to(ACC)
        b = tl.load(X + head[:, None] * stride_x + second[None, :], mask=inside, other=0.0).to(ACC)
        ya = tl.load(DY + head[:, None] * stride_dy + first[None, :], mask=inside, other=0.0).to(ACC)
        yb = tl.load(DY + head[:, None] * stride_dy + second[None, :], mask=inside, other=0.0).to(ACC)
        rstd = 1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * half) + eps)
        a, b = a * rstd[:, None], b * rstd[:, None]
        ga, gb = ya * c + yb * s, yb * c - ya * s
        da_w += ga * a
        db_w += gb * b
        ga, gb = ga * wa, gb * wb
        shared = (tl.sum(ga * a, axis=1) + tl.sum(gb * b, axis=1)) / (2 * half)
        dx = DX + head[:, None] * (2 * half)
        da = (ga - a * shared[:, None]) * rstd[:, None]
        db = (gb - b * shared[:, None]) * rstd[:, None]
        tl.store(dx + first[None, :], da.to(DX.dtype.element_ty), mask=inside)
        tl.store(dx + second[None, :], db.to(DX.dtype.element_ty), mask=inside)
    return da_w, db_w


@jit
def _norm_backward_kernel(  # type: ignore[no-untyped-def]
    DQY, DKY, Q, K, DQ, DK, QW, KW, POSITIONS, TURNS, PARTIAL, tokens, q_heads, k_heads, half,
    dq_token, dq_head, dk_token, dk_head, q_token, q_head, k_token, k_head, eps,
    INTERLEAVED: tl.constexpr, ACC: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    qa = tl.zeros((HEADS, HALF), dtype=ACC)
    qb = tl.zeros((HEADS, HALF), dtype=ACC)
    ka = tl.zeros((HEADS, HALF), dtype=ACC)
    kb = tl.zeros((HEADS, HALF), dtype=ACC)
    for index in range(tl.program_id(0), tokens, tl.num_programs(0)):
        position = tl.load(POSITIONS + index)
        token = index + tl.zeros((), dtype=tl.int64)
        c, s = _rotation(position, TURNS, half, HALF)
        c, s = c.to(ACC), s.to(ACC)
        qa, qb = _norm_heads_backward(
            DQY + token * dq_token, Q + token * q_token, DQ + token * q_heads * 2 * half, QW,
            q_heads, half, dq_head, q_head, c, s, eps, qa, qb, INTERLEAVED, ACC, HEADS, HALF,
        )  # fmt: skip
        ka, kb = _norm_heads_backward(
            DKY + token * dk_token, K + token * k_token, DK + token * k_heads * 2 * half, KW,
            k_heads, half, dk_head, k_head, c, s, eps, ka, kb, INTERLEAVED, ACC, HEADS, HALF,
        )  # fmt: skip
    first, second = _columns(half, INTERLEAVED, HALF)
    in_half = tl.arange(0, HALF) < half
    partial = PARTIAL + tl.program_id(0) * 4 * half
    tl.store(partial + first, tl.sum(qa, axis=0), mask=in_half)
    tl.store(partial + second, tl.sum(qb, axis=0), mask=in_half)
    tl.store(partial + 2 * half + first, tl.sum(ka, axis=0), mask=in_half)
    tl.store(partial + 2 * half + second, tl.sum(kb, axis=0), mask=in_half)


def configs() -> dict[str, tuple[Config, ...]]:
    """Launch configurations per kernel; the first is the default. The norm's backward has only one, as in rms_norm."""
    forward: tuple[Config, ...] = tuple(
        {"HEADS": heads, "num_warps": warps} for heads, warps in ((16, 4), (8, 2), (32, 8), (8, 4))
    )
    return {"forward": forward, "norm_backward": ({"HEADS": 8, "PROGRAMS": 1056, "num_warps": 4},)}


@torch.library.custom_op("fmscale::rope", mutates_args=())
def _op(
    q: Tensor, k: Tensor, positions: Tensor, turns: Tensor, q_weight: Tensor | None,
    k_weight: Tensor | None, eps: float, interleaved: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tokens, heads, E = q.shape
    qy = q.new_empty(q.shape)
    ky = k.new_empty(k.shape)
    launch = launch_config("rope", "forward", q.device, bucket(q.dtype, E=E), configs()["forward"])
    if tokens:
        with on(q.device):
            _rope_kernel[(tokens,)](
                q, k, qy, ky, q if q_weight is None else q_weight, k if k_weight is None else k_weight, positions,
                turns, heads, k.shape[1], E // 2, q.stride(0), q.stride(1), k.stride(0), k.stride(1), eps,
                INVERSE=inverse, NORM=q_weight is not None, INTERLEAVED=interleaved, ACC=tl_dtype(accumulator(q.dtype)),
                HALF=round_up(E // 2), **launch,
            )  # fmt: skip
    return qy, ky


@_op.register_fake
def _fake(q: Tensor, k: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op("fmscale::rope_norm_backward", mutates_args=())
def _norm_backward_op(
    dqy: Tensor, dky: Tensor, q: Tensor, k: Tensor, positions: Tensor, turns: Tensor,
    q_weight: Tensor, k_weight: Tensor, eps: float, interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tokens, heads, E = q.shape
    dq = q.new_empty(q.shape)
    dk = k.new_empty(k.shape)
    choices = configs()["norm_backward"]
    launch = dict(launch_config("rope", "norm_backward", q.device, bucket(q.dtype, E=E), choices))
    programs = min(launch.pop("PROGRAMS"), tokens)
    acc = accumulator(q.dtype)
    partial = q.new_empty(programs, 2 * E, dtype=acc)
    if tokens:
        with on(q.device):
            _norm_backward_kernel[(programs,)](
                dqy, dky, q, k, dq, dk, q_weight, k_weight, positions, turns, partial,
                tokens, heads, k.shape[1], E // 2, dqy.stride(0), dqy.stride(1), dky.stride(0), dky.stride(1),
                q.stride(0), q.stride(1), k.stride(0), k.stride(1), eps,
                INTERLEAVED=interleaved, ACC=tl_dtype(acc), HALF=round_up(E // 2), **launch,
            )  # fmt: skip
    dw = sum_partials(partial, acc)
    return dq, dk, dw[:E].to(q_weight.dtype, copy=True), dw[E:].to(k_weight.dtype, copy=True)


@_norm_backward_op.register_fake
def _norm_backward_fake(
    dqy: Tensor, dky: Tensor, q: Tensor, k: Tensor, positions: Tensor, turns: Tensor, q_weight: Tensor,
    k_weight: Tensor, *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), q_weight.new_empty(q.shape[2]), k_weight.new_empty(q.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, positions, turns, q_weight, k_weight, ctx.eps, ctx.interleaved, ctx.inverse = inputs
    ctx.norm = q_weight is not None
    # positions alone undo a plain rotation: only the norm needs q and k
    ctx.save_for_backward(positions, turns, *((q, k, q_weight, k_weight) if ctx.norm else ()))


def _backward(ctx: Any, dqy: Tensor, dky: Tensor) -> tuple[Tensor | None, ...]:
    positions, turns, *norm = ctx.saved_tensors
    dqy, dky = _heads(dqy), _heads(dky)
    if not ctx.norm:
        dq, dk = _op(dqy, dky, positions, turns, None, None, ctx.eps, ctx.interleaved, not ctx.inverse)
        return dq, dk, None, None, None, None, None, None, None
    q, k, q_weight, k_weight = norm
    dq, dk, dqw, dkw = _norm_backward_op(dqy, dky, q, k, positions, turns, q_weight, k_weight, ctx.eps, ctx.interleaved)
    return dq, dk, None, None, dqw, dkw, None, None, None


_op.register_autograd(_backward, setup_context=_save)


def _heads(t: Tensor) -> Tensor:
    """(..., H, E) as (tokens, H, E) with unit stride in E: a view where possible, else a copy."""
    t = t.reshape(-1, *t.shape[-2:])
    return t if t.stride(-1) == 1 else t.contiguous()


def rope(
    q: Tensor, k: Tensor, positions: Tensor, *, theta: float = 10000.0, turns: Tensor | None = None,
    q_weight: Tensor | None = None, k_weight: Tensor | None = None, eps: float = 1e-6,
    interleaved: bool = False, backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rotate each pair of q and k by its angle at the token's position; positions restart per document.

    q (T, H, E) or (B, T, H, E), k the same with its own number of heads; E even, at most 512; fp32, fp16 or bf16 (fp64
    under the interpreter), any strides. positions (T,) or (B, T), int32 or int64: for packed documents,
    `document_positions(cu_seqlens, T)`. The pairs are (i, i + E/2), or (2i, 2i + 1) if interleaved. turns (E/2,) fp64,
    turns per position, replaces theta for scaled variants. q_weight and k_weight (E,), both or neither, norm each head
    first, as in `rms_norm`. Computed in fp32, angles in fp64, rounded once. Returns (q, k) rotated, contiguous.
    Differentiable once in q, k and the weights. Raises KernelError for shapes that do not fit.
    """
    E = q.shape[-1]
    _check(q, k, positions, turns, q_weight, k_weight)
    if turns is None:
        # a traced or fake tensor belongs to its trace or mode: from a cache it would fail in the next call
        plain = type(q) is Tensor and not torch.compiler.is_compiling()
        turns = (kept_turns if plain else rope_turns)(E, theta, q.device)
    auto = settled("rope", backend, q)
    refusals = {
        "triton": triton_refusal(q.device, q.dtype) or (f"head dim {E} (at most 512)" if E > 512 else None),
        "eager": None,
    }
    if auto or choose("rope", backend, q.device, bucket(q.dtype, E=E), refusals) == "eager":
        norm = {"q_weight": q_weight, "k_weight": k_weight}
        return rope_eager(q, k, positions, turns=turns, **norm, eps=eps, interleaved=interleaved)
    if q_weight is not None and k_weight is not None:
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    rest = (positions.expand(q.shape[:-2]).reshape(-1).contiguous(), turns.double().contiguous(), q_weight, k_weight)
    qy, ky = _op(_heads(q), _heads(k), *rest, eps, interleaved, False)
    return qy.view(q.shape), ky.view(k.shape)


def _check(
    q: Tensor, k: Tensor, positions: Tensor, turns: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None,
) -> None:  # fmt: skip
    E = q.shape[-1]
    fits = q.dim() in (3, 4) and k.dim() == q.dim() and E % 2 == 0
    fits = fits and k.shape[:-2] == q.shape[:-2] and k.shape[-1] == E and q.dtype == k.dtype
    fits = fits and positions.shape in (q.shape[:-2], q.shape[-3:-2])
    fits = fits and (turns is None or turns.shape == (E // 2,)) and (q_weight is None) == (k_weight is None)
    fits = fits and all(w is None or w.shape == (E,) for w in (q_weight, k_weight))
    if not fits:
        arguments = {"q": q, "k": k, "positions": positions, "turns": turns, "q_weight": q_weight}
        raise KernelError(
            "rope needs q and k (..., T, heads, E) of one dtype with E even, positions (..., T),"
            " turns (E/2,), and both weights (E,) or neither",
            found={n: None if t is None else tuple(t.shape) for n, t in arguments.items()},
            remedy="Packed documents are (tokens, heads, E) with one position a token.",
        )
