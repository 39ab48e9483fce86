"""The decoder of the Llama family (Touvron et al., arXiv 2302.13971; Grattafiori et al., arXiv 2407.21783), with what
Qwen 2 and 3 (arXiv 2407.10671, 2505.09388) and Gemma 2 and 3 (arXiv 2408.00118, 2503.19786) add to it.
"""

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from fmscale.config.model import ModelConfig
from fmscale.kernels import document_positions
from fmscale.models.cache import KVCache, LayerCache
from fmscale.models.layers import Embedding, FeedForward, Head, Linear, RMSNorm, Rotary, SelfAttention
from fmscale.models.shared import SharedContexts
from fmscale.models.weights import Whole, draw_weights

SCORE = "score.weight"
"""Name of the weight of a reward model's score, which a language model lacks."""


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it, perhaps another behind it, and added to the residual
    stream. `number` counts blocks from 0: windows and rotary wavelengths can differ from block to block.
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        window, norms = config.layer_window(number), {"eps": config.norm_eps, "offset": config.norm_offset}
        rotary = Rotary(config.rope_theta, config.rope_scaling)
        if window is not None and config.local_rope_theta is not None:
            rotary = Rotary(config.local_rope_theta)
        self.attention = SelfAttention(
            config.dim,
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_width,
            rotary=rotary,
            window=window,
            qk_norm=config.qk_norm,
            norm_eps=config.norm_eps,
            norm_offset=config.norm_offset,
            bias=config.qkv_bias,
            scale=None if config.query_scalar is None else config.query_scalar**-0.5,
            softcap=config.softcap,
            backend=config.attention_backend,
        )
        self.feed_forward = FeedForward(config.dim, config.ffn_width, activation=config.activation)
        self.attention_norm = RMSNorm(config.dim, **norms)
        self.ffn_norm = RMSNorm(config.dim, **norms)
        self.attention_post_norm = RMSNorm(config.dim, **norms) if config.post_norms else None
        self.ffn_post_norm = RMSNorm(config.dim, **norms) if config.post_norms else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        h_BTD: Tensor,
        positions_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        cache: LayerCache | SharedContexts | None = None,
    ) -> Tensor:
        """The residual stream (B, T, D) after this block."""
        mixed_BTD = self.attention(
            self.attention_norm(h_BTD), positions_BT=positions_BT, cu_seqlens=cu_seqlens, cache=cache
        )
        if self.attention_post_norm is not None:
            mixed_BTD = self.attention_post_norm(mixed_BTD)
        x_BTD, h_BTD = self.ffn_norm(self.dropout(mixed_BTD), h_BTD)
        made_BTD = self.feed_forward(x_BTD)
        if self.ffn_post_norm is not None:
            made_BTD = self.ffn_post_norm(made_BTD)
        out: Tensor = h_BTD + self.dropout(made_BTD)
        return out


class Decoder(nn.Module):
    """Model from tokens to hidden states; `head` turns hidden states into logits or a loss.

    The weights are uninitialised until `init_weights` or `load_weights`. Every weight is used inside the forward of
    its own module, as engines that shard by module need.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.tok_embeddings = Embedding(vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.num_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps, offset=config.norm_offset)
        self.output = Head(config.dim, vocab_size, softcap=config.logit_softcap)
        if config.tied:
            self.output.weight = cast(nn.Parameter, self.tok_embeddings.weight)
        if config.score:
            self.score = Linear(config.dim, 1)

    @property
    def head(self) -> Head:
        """The output projection: logits, or the loss."""
        return self.output

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: KVCache | SharedContexts | None = None,
    ) -> Tensor:
        """tokens (B, T) -> hidden states (B, T, D), after the final norm.

        Args:
            tokens_BT: token ids.
            positions_BT: position of each token in its document; the default counts from 0 in each document.
            cu_seqlens: (documents + 1,) boundaries of documents in the B * T tokens read as one sequence. No token
                sees another document. Without boundaries each row is one document.
            cache: keys and values of earlier tokens (`KVCache`), or contexts of several continuations
                (`SharedContexts`).
        """
        B, T = tokens_BT.shape
        caches: list[LayerCache | SharedContexts | None] = [None] * len(self.layers)
        if cache is not None:
            layer_caches, positions_BT = cache.begin(tokens_BT, cu_seqlens)
            caches = list(layer_caches)
        elif positions_BT is None and cu_seqlens is not None:
            positions_BT = document_positions(cu_seqlens, B * T).view(B, T)
        elif positions_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
        h_BTD = self.tok_embeddings(tokens_BT)
        if self.config.embedding_scale != 1.0:  # rounded to the weights' type, as Gemma was trained
            h_BTD = h_BTD * torch.tensor(self.config.embedding_scale, dtype=h_BTD.dtype)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            h_BTD = layer(h_BTD, positions_BT, cu_seqlens, layer_cache)
        out: Tensor = self.norm(h_BTD)
        return out

    def init_weights(self, generator: torch.Generator, whole: Whole = nullcontext) -> None:
        """Draw the weights. Equal generators give equal weights on any device, in any type, with any number of ranks.
        `whole` as in `draw_weights`. The score's map is 0, so that no text is better than another.
        """
        residual_std = self.config.init_std / (2 * self.config.num_layers) ** 0.5

        def std(name: str) -> float:
            if name == SCORE:
                return 0.0
            return residual_std if name.endswith(("wo.weight", "w2.weight")) else self.config.init_std

        draw_weights(self, generator, std, whole, norm=1.0 - self.config.norm_offset)
