"""Contexts that several continuations share: their keys are computed once and read by all continuations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fmscale.kernels import flash_attention


class Group(NamedTuple):
    """Continuations of one context, by their tokens in the row."""

    context: tuple[slice, ...]
    """Parts of the context, in succession."""
    tails: slice
    """All its continuations, in succession."""
    seen: Tensor
    """bool (tails, context + tails): a token sees the context, and its own continuation up to itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedContexts:
    """Layout of a forward over documents and, behind all of them, continuations. It is given as the decoder's cache:
    `Decoder.forward(tokens (1, N), cache=shared)`. With continuations, attention must have neither window nor soft-cap.
    """

    layers: int
    """Layers of the decoder."""
    documents: Tensor
    """int32 (documents + 1,): bounds of the documents, each of a token or more."""
    size: int
    """Tokens of all documents."""
    groups: Sequence[Group]
    """Continuations, in the order of their tokens; a context may be a continuation itself."""
    positions: Tensor
    """int64 (N,): position of each token in its document or context with continuation."""

    def begin(self, tokens_BT: Tensor, cu_seqlens: Tensor | None) -> "tuple[list[SharedContexts], Tensor]":
        """This layout for each layer, and the positions (1, N)."""
        assert (cu_seqlens, *tokens_BT.shape) == (None, 1, len(self.positions)), "one row in this layout"
        return [self] * self.layers, self.positions[None]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: int | None,
        softcap: float | None,
        scale: float | None,
        backend: str,
    ) -> Tensor:
        """q (N, H, E), k and v (N, K, E) -> (N, H, E)."""
        C = self.size
        options: dict[str, Any] = {"window": window, "softcap": softcap, "scale": scale, "backend": backend}
        parts: list[Tensor] = [flash_attention(q[:C], k[:C], v[:C], cu_seqlens=self.documents, **options)]
        assert not self.groups or (window, softcap) == (None, None), "a continuation would need keys of its own"
        for context, tails, seen in self.groups:
            keys, values = (torch.cat([x[part] for part in (*context, tails)]).transpose(0, 1)[None] for x in (k, v))
            out = scaled_dot_product_attention(
                q[tails].transpose(0, 1)[None],
                keys,
                values,
                attn_mask=seen,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)


def seen_by_tails(context: int, tails: Sequence[int]) -> Tensor:
    """`Group.seen` of a context of so many tokens and its continuations of these lengths, on the CPU."""
    own = torch.block_diag(*(torch.ones(length, length).tril() for length in tails)).bool()
    return torch.cat((torch.ones(sum(tails), context, dtype=torch.bool), own), dim=1)
