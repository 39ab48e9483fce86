"""Rotary positions in plain torch, and the positions of tokens in their documents."""

import functools
import math
import weakref

import torch
from fmscale.kernels.launch import accumulator
from torch import Tensor


def rope_turns(E: int, theta: float, device: torch.device) -> Tensor:
    """Turns that a position adds to each of the E/2 pairs, theta**(-2i/E) / 2 pi, as fp64 on `device`."""
    exponent = torch.arange(0, E, 2, dtype=torch.float64, device=device) / E
    return theta**-exponent / (2 * math.pi)


# Computed outside the inference mode of the first call: an inference tensor cannot be saved for a later backward.
kept_turns = functools.cache(torch.inference_mode(False)(rope_turns))


def document_positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Positions (tokens,) int32 that restart at 0 with each document of `cu_seqlens` (documents + 1,).

    Empty documents are allowed. Computed on the device of `cu_seqlens`, without a host sync.
    """
    index = torch.arange(tokens, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, index, right=True) - 1
    return (index - cu_seqlens[document]).to(torch.int32)


def rope_eager(
    q: Tensor, k: Tensor, positions: Tensor, *, turns: Tensor, q_weight: Tensor | None = None,
    k_weight: Tensor | None = None, eps: float = 1e-6, interleaved: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`rope` in plain torch: the reference, and the `eager` backend."""
    acc = accumulator(q.dtype)
    c, s = rope_angles(positions, turns, acc, interleaved)
    heads = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        wide = x if x.dtype == acc else x.to(acc)
        if weight is not None:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(acc)
        heads.append(wide)
    both = torch.cat(heads, -2)
    if interleaved:
        partners = both.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        a, b = both.chunk(2, -1)
        partners = torch.cat((b, a), -1)
    turned = both * c + partners * s
    if turned.dtype != q.dtype:
        turned = turned.to(q.dtype)
    rotated_q, rotated_k = turned.split((q.shape[-2], k.shape[-2]), -2)
    return rotated_q, rotated_k


def rope_angles(
    positions: Tensor, turns: Tensor, dtype: torch.dtype, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosine of each element of a head, and the sine with the sign of its partner's part: (..., 1, E).

    All layers of a forward turn the same positions, so the last angles of each kind are kept while their positions are.
    """
    plain = type(positions) is Tensor and not (torch.compiler.is_compiling() or positions.is_inference())
    key = (id(turns), dtype, interleaved)
    kept = _kept_angles.get(key) if plain else None
    if kept is not None and kept[0]() is positions and kept[1] == positions._version:
        return kept[2]
    angle = (positions.double()[..., None] * turns.double() % 1.0 * (2 * math.pi))[..., None, :]
    c, s = angle.cos().to(dtype), angle.sin().to(dtype)
    if interleaved:
        angles = (c.repeat_interleave(2, -1), torch.stack((-s, s), -1).flatten(-2))
    else:
        angles = (torch.cat((c, c), -1), torch.cat((-s, s), -1))
    if plain:  # the turns are kept too: their id is in the key
        forget = weakref.ref(positions, lambda _: _kept_angles.pop(key, None))
        _kept_angles[key] = (forget, positions._version, angles, turns)
    return angles


_kept_angles: dict[tuple[int, torch.dtype, bool], tuple[weakref.ref[Tensor], int, tuple[Tensor, Tensor], Tensor]] = {}
