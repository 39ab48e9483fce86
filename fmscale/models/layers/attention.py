"""Multi-head attention with grouped key heads (Ainslie et al., arXiv 2305.13245), to itself or to a context."""

from typing import Any

import torch
from torch import Tensor, nn

from fmscale.kernels import flash_attention
from fmscale.models.cache import LayerCache
from fmscale.models.layers.linear import Linear
from fmscale.models.layers.norm import shifted
from fmscale.models.layers.rotary import Rotary
from fmscale.models.shared import SharedContexts


class _Attention(nn.Module):
    """The projections: queries of a sequence, keys and values of a context, and the output."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.wq = Linear(dim, num_heads * head_dim, bias=bias)
        self.wk = Linear(context_dim, num_kv_heads * head_dim, bias=bias)
        self.wv = Linear(context_dim, num_kv_heads * head_dim, bias=bias)
        self.wo = Linear(num_heads * head_dim, dim)
        self.head_dim, self.scale, self.softcap, self.backend = head_dim, scale, softcap, backend

    def project(self, x_BTD: Tensor, context_BSD: Tensor) -> list[Tensor]:
        """Queries (B, T, H, E), keys and values (B, S, K, E)."""
        flat = (self.wq(x_BTD), self.wk(context_BSD), self.wv(context_BSD))
        return [each.view(*each.shape[:-1], -1, self.head_dim) for each in flat]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None, *,
        causal: bool, window: int | None,
    ) -> Tensor:  # fmt: skip
        """(B, T, H, E), or (B * T, H, E) with boundaries of documents."""
        if cu_seqlens is not None:
            q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        # torch's own know no queries that follow earlier keys, and varlen no keys with lengths of their own
        unable = self.backend == "varlen" or (self.backend == "sdpa" and causal)
        backend = "auto" if unable and cu_seqlens_k is not None else self.backend
        out: Tensor = flash_attention(
            q, k, v, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k,
            causal=causal, window=window, softcap=self.softcap, scale=self.scale, backend=backend,
        )  # fmt: skip
        return out


class SelfAttention(_Attention):
    """Attention of a sequence to itself: causal for decoders, not for encoders; with rotary positions or without.

    `bias` is that of queries, keys and values; `scale` is the factor of the scores, 1 / sqrt(head_dim) by default. With
    `qk_norm` each head of queries and keys is normed before its rotation; the weights are this module's own, since they
    are used inside the rotation.
    """

    q_norm: nn.Parameter | None
    k_norm: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        causal: bool = True,
        rotary: Rotary | None = None,
        window: int | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        norm_offset: float = 0.0,
        bias: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        backend: str = "auto",
    ) -> None:
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        super().__init__(dim, dim, **heads, bias=bias, scale=scale, softcap=softcap, backend=backend)
        self.causal, self.rotary, self.window = causal, rotary, window
        self.norm_eps, self.norm_offset = norm_eps, norm_offset
        assert rotary is not None or not qk_norm, "the norm of heads is a part of their rotation"
        for name in ("q_norm", "k_norm"):
            weight = nn.Parameter(torch.full((head_dim,), 1.0 - norm_offset)) if qk_norm else None
            self.register_parameter(name, weight)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: LayerCache | SharedContexts | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        `cu_seqlens` (documents + 1,) are boundaries in the B * T tokens read as one sequence: a token sees its own
        document only. Without boundaries each row is one document. With a cache, the keys and values go into the cache,
        and the tokens follow their sequence's cached tokens and see them; see `KVCache`.
        """
        q, k, v = self.project(x_BTD, x_BTD)
        if self.rotary is not None:
            assert positions_BT is not None, "rotary attention needs positions"
            weights = [None if w is None else shifted(w, self.norm_offset) for w in (self.q_norm, self.k_norm)]
            q, k = self.rotary(q, k, positions_BT, q_weight=weights[0], k_weight=weights[1], eps=self.norm_eps)
        out = attend(self, q, k, v, cu_seqlens, cache)
        mixed: Tensor = self.wo(out.flatten(-2).view(*x_BTD.shape[:-1], -1))
        return mixed


def attend(
    layer: SelfAttention, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None,
    cache: LayerCache | SharedContexts | None,
) -> Tensor:  # fmt: skip
    """Output of the heads, (B, T, H, E) or (B * T, H, E), for turned queries and keys; see `SelfAttention.forward`."""
    options: dict[str, Any] = {
        "window": layer.window, "softcap": layer.softcap, "scale": layer.scale, "backend": layer.backend,
    }  # fmt: skip
    if isinstance(cache, SharedContexts):
        return cache.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), **options)
    cu_seqlens_k = None
    if cache is not None:
        cache.write(k, v)
        if cu_seqlens is None:
            return cache.attend(q, **options)
        k, v, cu_seqlens_k = cache.context(k, v)
    return layer.attend(q, k, v, cu_seqlens, cu_seqlens_k, causal=layer.causal, window=layer.window)


class CrossAttention(_Attention):
    """Attention of a sequence to a context of its own width: text to audio frames or to image patches."""

    def forward(
        self,
        x_BTD: Tensor,
        context_BSD: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); each token sees the whole context of its row.

        For contexts of different lengths, `cu_seqlens` bounds the documents in the B * T tokens of x, and
        `cu_seqlens_k` bounds the context of each document in the B * S context tokens; both are (documents + 1,).
        """
        q, k, v = self.project(x_BTD, context_BSD)
        out = self.attend(q, k, v, cu_seqlens, cu_seqlens_k, causal=False, window=None)
        mixed: Tensor = self.wo(out.flatten(-2).view(*x_BTD.shape[:-1], -1))
        return mixed
