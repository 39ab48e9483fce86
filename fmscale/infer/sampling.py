"""Choice of the next token: the likeliest token, or a draw after penalty, temperature, top-k, top-p and min-p.

Shapes: B sequences, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmscale.errors import ConfigError
from fmscale.runtime.draw import draw

RANKED = 1024
"""Tokens that top-p ranks at first: a nucleus is rarely larger, and ranking all of 49,152 takes 20 times as long."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the choice. The draw of a token follows from the seed, the key of the prompt, the number of the
    sample and the token's place: neither from other sequences nor from the batch."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token and draws nothing."""
    top_k: int | None = None
    """Only the k likeliest tokens, and those as likely as the k-th; None for all."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability, after temperature and top_k, and those as likely
    as the last of them; None for all (nucleus sampling, Holtzman et al., arXiv 1904.09751)."""
    min_p: float | None = None
    """Only tokens with at least this share of the likeliest token's probability; None for all (Nguyen et al., arXiv
    2407.01082)."""
    repetition: float = 1.0
    """Divides positive and multiplies negative logits of tokens that the prompt or the answer has, before the
    temperature; 1 changes nothing (CTRL, Keskar et al., arXiv 1909.05858)."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name, good, remedy in (
            ("temperature", self.temperature >= 0, "Take 0 for the likeliest token, or about 0.8."),
            ("top_k", self.top_k is None or self.top_k >= 1, "Take 1 or more, or none."),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "Take a number above 0, up to 1."),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "Take a number from 0 to 1, such as 0.05."),
            ("repetition", self.repetition > 0, "Take 1 for no penalty, or about 1.1."),
            ("seed", 0 <= self.seed < 2**64, "Take 0 or more, below 2^64."),
        ):
            if not good:
                raise ConfigError(f"{name} cannot be this", found=getattr(self, name), remedy=remedy)

    def draws(self, key: int, sample: int, count: int) -> np.ndarray:
        """Uniform numbers fp64 (count,) for the tokens of a sample of the prompt with this key."""
        return draw(self.seed, "generate", key, sample, n=count)


def choose(logits_BV: Tensor, sampling: Sampling, draws_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """The next token of each sequence, int64 (B,), and the log of its probability in the distribution that it is drawn
    from, fp64 (B,). Equal logits go to the smaller id. `draws_B` holds uniform numbers fp64; temperature 0 needs none.
    """
    if sampling.temperature == 0:
        chosen_B = _largest(logits_BV)
        return chosen_B, torch.zeros(chosen_B.shape, dtype=torch.float64, device=chosen_B.device)
    assert draws_B is not None, "a draw needs numbers"
    shares_BV = probabilities(logits_BV, sampling)
    below_BV = shares_BV.cumsum(-1)
    total_B1 = below_BV[:, -1:]
    # the first token whose range ends beyond the point: a token of probability 0 has no range
    point_B1 = (draws_B[:, None] * total_B1).minimum(total_B1 * (1 - 2**-52))
    chosen_B1 = torch.searchsorted(below_BV, point_B1, right=True)
    return chosen_B1[:, 0], (shares_BV.gather(1, chosen_B1) / total_B1).log()[:, 0]


def _largest(logits_BV: Tensor) -> Tensor:
    """The first largest of each row. On a CPU by numpy, whose search takes 25 us for 32 x 4,096, torch's 150."""
    if logits_BV.device.type != "cpu" or logits_BV.dtype != torch.float32:
        return logits_BV.argmax(-1)
    return torch.from_numpy(logits_BV.numpy().argmax(-1))


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities fp64 (B, V), 0 for excluded tokens; the rest of a row is not scaled to sum to 1."""
    wide = logits_BV.to(torch.float64) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < wide.shape[1]:
        least = wide.topk(sampling.top_k).values[:, -1:]
        wide = wide.masked_fill(wide < least, -torch.inf)
    shares = wide.softmax(-1)
    if sampling.top_p is not None:
        shares = shares.masked_fill(shares < _least_of_nucleus(shares, sampling.top_p), 0.0)
    if sampling.min_p is not None:
        shares = shares.masked_fill(shares < sampling.min_p * shares.amax(-1, keepdim=True), 0.0)
    return shares


def _least_of_nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Probability (B, 1) of the last token of each row's nucleus."""
    V = shares.shape[1]
    for count in (min(RANKED, V), V):
        ranked = shares.topk(count).values
        reached = ranked.cumsum(-1)
        if count == V or bool((reached[:, -1] >= top_p).all()):
            break
    # the likeliest token always stays, and so does each token before which the sum is below top_p
    last = ((reached - ranked < top_p).sum(-1, keepdim=True) - 1).clamp(min=0)
    return ranked.gather(1, last)


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with the repetition penalty on the tokens of the mask `seen_BV`."""
    return logits_BV.where(~seen_BV, (logits_BV / penalty).where(logits_BV > 0, logits_BV * penalty))
