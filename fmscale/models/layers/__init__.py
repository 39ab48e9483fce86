"""Layers that decoders, encoders and models of other modalities share.

Shapes: B batch, T tokens, S context tokens, D model dim, H heads, K key heads, E head dim, V vocabulary, F ffn dim.
"""

from fmscale.models.layers.attention import CrossAttention, SelfAttention
from fmscale.models.layers.feed_forward import FeedForward
from fmscale.models.layers.head import Head
from fmscale.models.layers.linear import Embedding, Linear
from fmscale.models.layers.norm import RMSNorm
from fmscale.models.layers.rotary import Rotary

__all__ = [
    "CrossAttention",
    "Embedding",
    "FeedForward",
    "Head",
    "Linear",
    "RMSNorm",
    "Rotary",
    "SelfAttention",
]
