"""Layers that decoders, encoders and models of other modalities share.

- `linear.py`        matrices and embeddings without initial weights
- `norm.py`          root-mean-square norm
- `rotary.py`        rotary positions
- `attention.py`     attention to the sequence itself or to a context
- `feed_forward.py`  SwiGLU and GeGLU
- `head.py`          hidden states to logits or to a loss

Shapes: B batch, T tokens, S context tokens, D model dim, H heads, K key heads, E head dim, V vocabulary, F ffn dim.
"""

from fmscale.models.layers.attention import CrossAttention, SelfAttention
from fmscale.models.layers.feed_forward import FeedForward
from fmscale.models.layers.head import Head
from fmscale.models.layers.linear import Embedding, Linear
from fmscale.models.layers.norm import RMSNorm
from fmscale.models.layers.rotary import Rotary

__all__ = ["CrossAttention", "Embedding", "FeedForward", "Head", "Linear", "RMSNorm", "Rotary", "SelfAttention"]
