"""A classifier of pictures: a transformer over the patches of all pictures of a forward, packed one after another.

Shapes: N positions, S pictures, P bytes of a patch, D width, C classes.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmscale.models.layers import FeedForward, RMSNorm, SelfAttention
from fmscale.models.layers.linear import Linear
from fmscale.models.weights import Whole, draw_weights


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A transformer whose mean over a picture's patches gives the picture's class."""

    classes: int
    """Number of classes."""
    width: int = 64
    """Width of the stream, a multiple of 4."""
    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Attention heads."""
    patch: int = 8
    """Side of a patch in pixels."""
    dropout: float = 0.0
    """There is no dropout; so recompute keeps no generator's state."""

    def build(self, vocab_size: int | None) -> nn.Module:
        """The module, with uninitialised weights."""
        return PatchClassifier(self)


class Block(nn.Module):
    """Attention among the patches of a picture, and feed-forward."""

    def __init__(self, config: Classifier) -> None:
        super().__init__()
        heads, width = config.heads, config.width
        self.attention_norm, self.ffn_norm = RMSNorm(width), RMSNorm(width)
        self.attention = SelfAttention(
            width, num_heads=heads, num_kv_heads=heads, head_dim=width // heads, causal=False
        )
        self.feed_forward = FeedForward(width, 2 * width)

    def forward(self, h_ND: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The stream (1, N, D) after this block."""
        x_ND, h_ND = self.ffn_norm(self.attention(self.attention_norm(h_ND), cu_seqlens=cu_seqlens), h_ND)
        out: Tensor = h_ND + self.feed_forward(x_ND)
        return out


class PatchClassifier(nn.Module):
    """Pictures of any size to logits of their classes."""

    def __init__(self, config: Classifier) -> None:
        super().__init__()
        self.width = config.width
        self.stem = Linear(3 * config.patch**2, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.classes = Linear(config.width, config.classes)

    def forward(self, patches_NP: Tensor, places_N2: Tensor, *, cu_seqlens: Tensor, bounds: Tensor) -> Tensor:
        """Bytes (1, N, P) and places (1, N, 2) of patches -> logits (S, C). A picture without patches has logits 0.

        `cu_seqlens` and `bounds` bound the pictures, with and without the padding behind them.
        """
        dtype = self.stem.weight.dtype
        h_ND = self.stem(patches_NP.to(dtype) / 127.5 - 1)
        h_ND = h_ND + _waves(places_N2, self.width).to(dtype)
        for layer in self.layers:
            h_ND = layer(h_ND, cu_seqlens)
        out: Tensor = self.classes(_means(self.norm(h_ND)[0], bounds))
        return out

    def init_weights(self, generator: torch.Generator, whole: Whole = nullcontext) -> None:
        """Draw the weights, the same at any number of ranks."""
        draw_weights(self, generator, lambda name: 0.02 if name == "classes.weight" else self.width**-0.5 / 2, whole)


def _means(h_ND: Tensor, bounds: Tensor) -> Tensor:
    """Means over pictures (S, D); 0 for a picture without patches.

    The padding is one more picture behind the last, so that a forward of padding alone has a gradient too.
    """
    ends = torch.cat((bounds, bounds.new_tensor([len(h_ND)])))
    sums = torch.segment_reduce(h_ND.float(), "sum", offsets=ends, initial=0, axis=0, unsafe=True)[:-1]
    return (sums / bounds.diff().clamp(min=1)[:, None]).to(h_ND.dtype)


def _waves(places: Tensor, width: int) -> Tensor:
    """Sines and cosines of rows and columns (..., 2) -> (..., width), a quarter each."""
    turns = 100.0 ** -(torch.arange(width // 4, device=places.device) / (width // 4))
    angles = places[..., None].float() * turns
    return torch.cat((angles.sin(), angles.cos()), -1).flatten(-2)
