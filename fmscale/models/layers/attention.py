"""Multi-head attention with grouped key heads (Ainslie et al., arXiv 2305.13245), to itself or to a context."""

from torch import Tensor, nn

from fmscale.kernels import flash_attention
from fmscale.models.cache import LayerCache
from fmscale.models.layers.linear import Linear
from fmscale.models.layers.rotary import Rotary


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
        softcap: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.wq = Linear(dim, num_heads * head_dim)
        self.wk = Linear(context_dim, num_kv_heads * head_dim)
        self.wv = Linear(context_dim, num_kv_heads * head_dim)
        self.wo = Linear(num_heads * head_dim, dim)
        self.head_dim, self.softcap, self.backend = head_dim, softcap, backend

    def project(self, x_BTD: Tensor, context_BSD: Tensor) -> list[Tensor]:
        """Queries (B, T, H, E), keys and values (B, S, K, E)."""
        flat = (self.wq(x_BTD), self.wk(context_BSD), self.wv(context_BSD))
        return [each.view(*each.shape[:-1], -1, self.head_dim) for each in flat]


class SelfAttention(_Attention):
    """Attention of a sequence to itself: causal for decoders, not for encoders; with rotary positions or without."""

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
        softcap: float | None = None,
        backend: str = "auto",
    ) -> None:
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        super().__init__(dim, dim, **heads, softcap=softcap, backend=backend)
        self.causal, self.rotary, self.window = causal, rotary, window

    def forward(
        self,
        x_BTD: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        `cu_seqlens` (documents + 1,) are boundaries in the B * T tokens read as one sequence: a token sees its own
        document only. Without boundaries each row is one document. With a cache, the keys and values go into the cache,
        and the tokens follow their sequence's cached tokens and see them; see `KVCache`.
        """
        q, k, v = self.project(x_BTD, x_BTD)
        if self.rotary is not None:
            assert positions_BT is not None, "rotary attention needs positions"
            q, k = self.rotary(q, k, positions_BT)
        out = attend(self, q, k, v, cu_seqlens, cache)
        mixed: Tensor = self.wo(out.flatten(-2).view(*x_BTD.shape[:-1], -1))
        return mixed


def attend(
    layer: SelfAttention, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, cache: LayerCache | None
) -> Tensor:
    """Output of the heads, (B, T, H, E) or (B * T, H, E), for turned queries and keys; see `SelfAttention.forward`."""
    cu_seqlens_k, backend = None, layer.backend
    if cache is not None:
        cache.write(k, v)
        if cu_seqlens is None:
            return cache.attend(q, window=layer.window, softcap=layer.softcap, backend=backend)
        k, v, cu_seqlens_k = cache.context(k, v)
        backend = "auto" if backend == "sdpa" and cu_seqlens_k is not None else backend
    return _attend(q, k, v, cu_seqlens, cu_seqlens_k, layer.causal, layer.window, layer.softcap, backend)


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
        out = _attend(q, k, v, cu_seqlens, cu_seqlens_k, False, None, self.softcap, self.backend)
        mixed: Tensor = self.wo(out.flatten(-2).view(*x_BTD.shape[:-1], -1))
        return mixed


def _attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None,
    causal: bool, window: int | None, softcap: float | None, backend: str,
) -> Tensor:  # fmt: skip
    """(B, T, H, E), or (B * T, H, E) with boundaries of documents."""
    if cu_seqlens is not None:
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out: Tensor = flash_attention(
        q, k, v, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k,
        causal=causal, window=window, softcap=softcap, backend=backend,
    )  # fmt: skip
    return out
