"""Choice of the next token: the likeliest token, or a draw after temperature, top-k and top-p.

Shapes: B sequences, V vocabulary.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the choice. Sequence i of a call draws from its own generator, made of (seed, i), so that its draws
    depend neither on the other sequences nor on the batch."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token and draws nothing."""
    top_k: int | None = None
    """Only the k likeliest tokens; None for all."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability, after temperature and top_k; None for all
    (nucleus sampling, Holtzman et al., arXiv 1904.09751)."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name, good, remedy in (
            ("temperature", self.temperature >= 0, "Take 0 for the likeliest token, or about 0.8."),
            ("top_k", self.top_k is None or self.top_k >= 1, "Take 1 or more, or none."),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "Take a number above 0, up to 1."),
            ("seed", self.seed >= 0, "Take 0 or more."),
        ):
            if not good:
                raise ConfigError(f"{name} cannot be this", found=getattr(self, name), remedy=remedy)

    def generators(self, first: int, count: int) -> list[torch.Generator]:
        """Generators of sequences [first, first + count)."""
        # hashed, as torch's CPU generator takes only 32 bits of its seed
        seeds = (hashlib.sha256(f"{self.seed}/{i}".encode()).digest() for i in range(first, first + count))
        return [torch.Generator().manual_seed(int.from_bytes(seed[:4], "little")) for seed in seeds]


def choose(logits_BV: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """int64 (B,): the next token of each sequence; equal logits go to the smaller id."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    draws = [torch.rand((), generator=generator, dtype=torch.float64) for generator in generators]
    ranked, ids = probabilities(logits_BV, sampling)
    totals = ranked.cumsum(-1)
    point = torch.stack(draws).to(logits_BV.device) * totals[:, -1]
    # the rank of the token is the number of tokens that lie wholly below the point
    rank = (totals <= point[:, None]).sum(-1, keepdim=True)
    last = (ranked > 0).sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(rank, last))[:, 0]


def probabilities(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities fp64 (B, V), likeliest first and 0 for excluded tokens, and their token ids (B, V)."""
    wide = logits_BV.to(torch.float64) / sampling.temperature
    ordered, ids = wide.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ordered[:, sampling.top_k :] = -torch.inf
    ranked = ordered.softmax(-1)
    if sampling.top_p is not None:
        before = ranked.cumsum(-1) - ranked
        before[:, 0] = 0.0  # the likeliest token always stays
        ranked = ranked.masked_fill(before >= sampling.top_p, 0.0)
    return ranked / ranked.sum(-1, keepdim=True), ids
