"""Losses of preference pairs, as functions of log-probs.

Arguments are fp32 [P], one value a pair: `chosen` and `rejected` are log-ratios log pi(y) - log pi_ref(y) of a whole
answer (or divided by its tokens), `mean_chosen` and `mean_rejected` log-probs a token. Results are fp32 [P].
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

DpoLoss = Literal["sigmoid", "robust", "hinge", "sppo", "apo_zero", "apo_down"]


def dpo_losses(
    chosen: Tensor, rejected: Tensor, *, beta: float, loss: DpoLoss = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    """DPO (arXiv 2305.18290) and variants; `DpoConfig` has their sources."""
    margin, error = beta * (chosen - rejected), label_smoothing
    right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
    if loss == "sigmoid":
        return (1 - error) * right + error * wrong
    if loss == "robust":
        return ((1 - error) * right - error * wrong) / (1 - 2 * error)
    if loss == "hinge":
        return relu(1 - margin)
    if loss == "sppo":
        return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    if loss == "apo_zero":
        return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(margin)


def ipo_losses(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """IPO (arXiv 2310.12036, equation 17)."""
    return (chosen - rejected - 1 / (2 * beta)).square()


def kto_losses(
    chosen: Tensor, rejected: Tensor, z: Tensor, *, beta: float, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """KTO (arXiv 2402.01306, equation 8), the mean of a pair's two sides; `z` is the step's mean divergence, a
    constant.
    """
    good = desirable * (1 - torch.sigmoid(beta * (chosen - z)))
    bad = undesirable * (1 - torch.sigmoid(beta * (z - rejected)))
    return (good + bad) / 2


def orpo_losses(mean_chosen: Tensor, mean_rejected: Tensor, *, weight: float) -> Tensor:
    """ORPO (arXiv 2403.07691): loss a token of the chosen answer, and the odds ratio."""
    return -mean_chosen - weight * logsigmoid(log_odds(mean_chosen) - log_odds(mean_rejected))


def log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = e**mean. Probabilities of 1 to fp32's precision keep finite odds."""
    below = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return mean - torch.log(-torch.expm1(below))


def simpo_losses(mean_chosen: Tensor, mean_rejected: Tensor, *, beta: float, margin: float) -> Tensor:
    """SimPO (arXiv 2405.14734, equation 6)."""
    return -logsigmoid(beta * (mean_chosen - mean_rejected) - margin)
