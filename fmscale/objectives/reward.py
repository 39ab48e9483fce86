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


def last_trained(given: Mapping[str, Tensor]) -> Tensor:
    """Position of each document's score, int64 [D]: its last trained token, or where that is only a label, the token
    that predicts it.
    """
    ends = given["cu_seqlens"].long()[1 : len(given["spans"])]
    spans, trained = given["spans"], given["trained"]
    last = torch.where(spans.diff() > 0, trained[(spans[1:] - 1).clamp(min=0)] if len(trained) else 0, ends - 2)
    return torch.minimum(last + 1, ends - 1)


def document_scores(model: Any, given: Mapping[str, Tensor], at: Tensor) -> Tensor:
    """Scores of a flat forward's documents, fp32 [D], at the positions `at`."""
    scores: Tensor = model.score(hidden_at(model, given, at))
    return scores[:, 0].float()


class Rewards(Objective):
    """Losses of rankings; the count is that of rankings."""

    unit = "rankings"

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def collate(self, batch: SampleBatch) -> Inputs:
        """The tensors of `grouped` without those of the head, and the places of documents in rankings. Raises DataError
        for a sample of a single document.
        """
        inputs, counts = grouped(batch, 2, None, self.config.kind)
        counts = counts[counts > 0]
        rank = torch.arange(int(counts.max()) if len(counts) else 2)
        first = counts.cumsum(0) - counts
        tensors = {name: inputs.tensors[name] for name in ("tokens", "positions", "cu_seqlens", "present")}
        tensors["at"] = last_trained(inputs.tensors)
        tensors["there"] = rank < counts[:, None]
        tensors["document"] = torch.where(tensors["there"], first[:, None] + rank, 0)
        return Inputs(tensors=tensors, weights=inputs.weights, source=inputs.source, bounds=inputs.bounds)

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any = None) -> Loss:
        """`model(tokens, positions_BT=, cu_seqlens=)` gives hidden states, `model.score(hidden)` scores."""
        given = inputs.tensors
        there, scores = given["there"], document_scores(model, given, given["at"])
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
