"""The plain block of a decoder in few calls: on a CPU a token of a small model costs more in calls than in numbers.

The formulas are those of `models/decoder.py` and its layers, in fp32: a block with anything else computes as it is.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from fmscale.config.model import RopeScaling
from fmscale.kernels.rope_eager import rope_angles, rope_turns
from fmscale.models.cache import LayerCache
from fmscale.models.decoder import Block
from fmscale.models.layers import FeedForward, RMSNorm, Rotary, SelfAttention
from fmscale.models.layers.attention import attend
from fmscale.models.layers.linear import Linear
from fmscale.models.layers.rotary import scaled_turns

Product = Callable[[Tensor], Tensor]
KNOWN: dict[type, set[str]] = {
    Block: {"attention", "feed_forward", "attention_norm", "ffn_norm", "dropout"},
    SelfAttention: {"wq", "wk", "wv", "wo", "head_dim", "softcap", "backend", "causal", "rotary", "window", "norm_eps"},
    FeedForward: {"w1", "w2", "w3", "activation"},
    RMSNorm: {"weight", "eps"},
    Linear: {"weight", "in_features", "out_features"},
    Rotary: {"theta", "scaling"},
    RopeScaling: {"factor", "low_freq_factor", "high_freq_factor", "original_seq_len"},
    nn.Dropout: {"p", "inplace"},
    nn.Identity: set(),
}
"""All that this file knows of each class. A block is plain if it has nothing else, but for None, False and 0."""


def plain(part: Any) -> bool:
    """True for a block, or a part of it, that consists of known parts alone, in fp32, without hooks."""
    if part is None or isinstance(part, bool | int | float | str):
        return True
    if isinstance(part, Tensor):
        return part.dtype == torch.float32 and part.device.type == "cpu"
    known = KNOWN.get(type(part))
    if known is None:
        return False
    held = dict(vars(part))
    if isinstance(part, nn.Module):
        bare = vars(nn.Module())
        if part._forward_hooks or part._forward_pre_hooks or part._compiled_call_impl is not None:
            return False
        held = {n: v for n, v in held.items() if n not in bare} | part._parameters | part._modules | part._buffers
    if held.get("activation", "silu") != "silu":
        return False
    return all(
        plain(value) if name in known else value in (None, False, 0.0) if not isinstance(value, Tensor) else False
        for name, value in held.items()
    )


class _Rotation:
    """Turns the pairs of a head as complex numbers, which are made once for the positions of a forward."""

    def __init__(self, turns: Tensor) -> None:
        self._turns = turns
        self._made = (turns, turns)

    def at(self, positions_BT: Tensor) -> Tensor:
        """Complex numbers (B, T, 1, E / 2)."""
        cosine, sine = rope_angles(positions_BT, self._turns, torch.float32)
        if self._made[0] is not cosine:
            half = cosine.shape[-1] // 2
            self._made = (cosine, torch.complex(cosine[..., :half], sine[..., half:]))
        return self._made[1]


@functools.cache
@torch.inference_mode(False)
def _rotation(E: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> _Rotation:
    """The same for all blocks of a kind: their angles are then computed once a step."""
    return _Rotation(rope_turns(E, theta, device) if scaling is None else scaled_turns(E, theta, scaling, device))


def plain_block(block: Block, product: Callable[..., Product]) -> Callable[..., Tensor]:
    """The forward of a plain block; `product` makes the function x -> x @ cat(matrices).T of matrices (out, in)."""
    attention, ffn = block.attention, block.feed_forward
    E = attention.head_dim
    query_heads, key_heads = attention.wq.out_features // E, attention.wk.out_features // E
    both = (query_heads + key_heads) * E
    rotary = attention.rotary
    assert rotary is not None, "a decoder's attention has rotary positions"
    device = attention.wq.weight.device
    rotation = _rotation(E, rotary.theta, rotary.scaling, device)
    pairs = torch.arange(E).view(2, -1).T.flatten()
    wq, wk = (w.weight.view(-1, E, w.in_features)[:, pairs].flatten(0, 1) for w in (attention.wq, attention.wk))
    qkv, mix = product(wq, wk, attention.wv.weight), product(attention.wo.weight)
    up, down = product(ffn.w1.weight, ffn.w3.weight), product(ffn.w2.weight)
    first, second = block.attention_norm, block.ffn_norm

    def forward(
        h_BTD: Tensor, positions_BT: Tensor, cu_seqlens: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        B, T, D = h_BTD.shape
        h = h_BTD.view(-1, D)
        projected = qkv(rms_norm(h, (D,), first.weight, first.eps))
        heads = torch.view_as_complex(projected[:, :both].view(B, T, -1, E // 2, 2))
        turned = torch.view_as_real(heads * rotation.at(positions_BT)).flatten(-2)
        q, k = turned[:, :, :query_heads], turned[:, :, query_heads:]
        v = projected[:, both:].view(B, T, key_heads, E)
        mixed = attend(attention, q, k, v, cu_seqlens, cache)
        h = h + mix(mixed.reshape(-1, query_heads * E))
        gate, value = up(rms_norm(h, (D,), second.weight, second.eps)).chunk(2, -1)
        return (h + down(silu(gate) * value)).view(B, T, D)

    return forward
