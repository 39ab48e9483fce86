"""Reward models: scores of the documents of a ranking, best first, and their losses.

Shapes: R rankings, K documents of the largest; `there` [R, K] marks documents. The score of a document is that of its
last trained token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fmscale.config.objective import RewardConfig
from fmscale.objectives.logps import grouped, hidden_at
from fmscale.objectives.protocol import Inputs, Loss, Objective, SampleBatch

MULTIPLE = 64
"""Length of a flat forward is a multiple of it, so that compiled code and kernels meet few shapes."""


def bradley_terry_losses(scores: Tensor, there: Tensor, *, margin: float = 0.0) -> Tensor:
    """-log sigmoid(s_i - s_j - margin), mean over the pairs i before j of each ranking (InstructGPT, arXiv 2203.02155,
    equation 1; for two documents Bradley and Terry 1952): fp32 [R].
    """
    difference, pair = _differences(scores, there)
    losses = torch.where(pair, -logsigmoid(difference - margin), 0.0)
    return losses.sum((1, 2)) / pair.sum((1, 2))


def plackett_luce_losses(scores: Tensor, there: Tensor) -> Tensor:
    """-log of the ranking's probability (Plackett 1975): sum over i of logsumexp(s_i ... s_K) - s_i, fp32 [R]."""
    known = scores.masked_fill(~there, float("-inf"))
    later = known.flip(1).logcumsumexp(1).flip(1)
    return torch.where(there, later - scores, 0.0).sum(1)


def order_accuracy(scores: Tensor, there: Tensor) -> Tensor:
    """Share of the pairs of each ranking whose scores are in the right order: fp32 [R]."""
    difference, pair = _differences(scores, there)
    return ((difference > 0) & pair).sum((1, 2)) / pair.sum((1, 2))


def with_last_tokens(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A flat forward of `grouped` whose documents also have their last label as an input, and `at` [D], the position of
    each document's last trained token (without one, of its last token), where its score is read.
    """
    tokens, ends, spans, trained = (given[name] for name in ("tokens", "cu_seqlens", "spans", "trained"))
    D = len(spans) - 1
    number = torch.arange(D + 1, device=ends.device)
    ends = ends[: D + 1].long()
    own = torch.arange(int(ends[-1]), device=ends.device)
    size = -(-(int(ends[-1]) + max(D, 1)) // MULTIPLE) * MULTIPLE
    whole = tokens.new_zeros(1, size)
    whole[0, own + torch.searchsorted(ends, own, right=True) - 1] = tokens[0, : len(own)]
    whole[0, ends[1:] + number[:-1]] = given["last"]
    bounds = torch.cat((ends + number, ends.new_full((1,), size)))
    filled = torch.arange(size, device=ends.device)
    begins = bounds[torch.searchsorted(bounds, filled, right=True) - 1]
    at = ends[1:] + number[:-1]
    if len(trained):
        last = trained[(spans[1:] - 1).clamp(min=0)] + 1 + number[:-1]
        at = torch.where(spans.diff() > 0, last, at)
    cu_seqlens = bounds if int(bounds[-2]) < size else bounds[:-1]
    return {"tokens": whole, "positions": (filled - begins)[None], "cu_seqlens": cu_seqlens.to(torch.int32), "at": at}


def document_scores(model: Any, given: Mapping[str, Tensor]) -> Tensor:
    """Scores of the documents of a flat forward of `with_last_tokens`, fp32 [D]."""
    scores: Tensor = model.score(hidden_at(model, given, given["at"]))
    return scores[:, 0].float()


class Rewards(Objective):
    """Losses of rankings; the count is that of rankings."""

    unit = "rankings"

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def collate(self, batch: SampleBatch) -> Inputs:
        """The tensors of `with_last_tokens`, and the places of documents in rankings. Raises DataError
        for a sample of a single document.
        """
        inputs, counts = grouped(batch, 2, None, self.config.kind)
        counts = counts[counts > 0]
        rank = torch.arange(int(counts.max()) if len(counts) else 2)
        first = counts.cumsum(0) - counts
        tensors = {**with_last_tokens(inputs.tensors), "present": inputs.tensors["present"]}
        tensors["there"] = rank < counts[:, None]
        tensors["document"] = torch.where(tensors["there"], first[:, None] + rank, 0)
        return Inputs(tensors=tensors, weights=inputs.weights, source=inputs.source, bounds=inputs.bounds)

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any = None) -> Loss:
        """`model(tokens, positions_BT=, cu_seqlens=)` gives hidden states, `model.score(hidden)` scores."""
        given = inputs.tensors
        there, scores = given["there"], document_scores(model, given)
        scores = (
            torch.where(there, scores[given["document"]], 0.0) if len(there) else scores.new_zeros(0, 2) + scores.sum()
        )
        if self.config.loss == "plackett_luce":
            losses = plackett_luce_losses(scores, there)
        else:
            losses = bradley_terry_losses(scores, there, margin=self.config.margin)
        found, last = scores.detach(), there.sum(1, keepdim=True) - 1
        by_sample = torch.stack((torch.zeros_like(inputs.weights), inputs.weights))
        by_sample[0, given["present"]] = losses.detach()
        return Loss(
            sum=losses.sum(),
            count=inputs.weights.sum(),
            by_sample=by_sample,
            metrics={
                "accuracy": order_accuracy(found, there).sum(),
                "score_margin": (found[:, :1] - found.gather(1, last)).sum(),
                "score": (found.sum(1) / there.sum(1)).sum(),
            },
        )


def _differences(scores: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """s_i - s_j [R, K, K], and the marks of pairs of documents i before j."""
    ordered = torch.ones(there.shape[1], there.shape[1], dtype=torch.bool, device=there.device).triu(1)
    return scores[:, :, None] - scores[:, None, :], there[:, :, None] & there[:, None, :] & ordered
