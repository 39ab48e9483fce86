"""Losses of pairs and rankings against the values of their papers' formulas, worked out by hand for a small case."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fmscale.objectives.preference import dpo_losses, ipo_losses, kto_losses, log_odds, orpo_losses, simpo_losses
from fmscale.objectives.reward import bradley_terry_losses, order_accuracy, plackett_luce_losses


def one(value: float) -> Tensor:
    return torch.tensor([value])


CHOSEN, REJECTED = one(1.0), one(-0.5)
"""Log-ratios of log-probs -10 and -12 to the reference's -11 and -11.5; the answers have 4 and 6 tokens."""


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, 0.620957),
        ({"label_smoothing": 0.1}, 0.9 * 0.620957 + 0.1 * 0.770957),
        ({"loss": "robust", "label_smoothing": 0.1}, 0.602207),
        ({"loss": "hinge"}, 0.85),
        ({"loss": "sppo"}, 36.25),
        ({"loss": "apo_zero"}, 0.962523),
        ({"loss": "apo_down"}, 0.987549),
    ],
)
def test_dpo_and_its_variants(options: dict[str, Any], value: float) -> None:
    assert dpo_losses(CHOSEN, REJECTED, beta=0.1, **options).item() == pytest.approx(value, rel=1e-6, abs=6e-7)


def test_other_losses_of_pairs() -> None:
    per_token = (CHOSEN / 4, REJECTED / 6)
    assert dpo_losses(*per_token, beta=0.1).item() == pytest.approx(0.676619, rel=1e-6, abs=6e-7)
    assert ipo_losses(CHOSEN, REJECTED, beta=0.1).item() == 12.25
    assert ipo_losses(*per_token, beta=0.1).item() == pytest.approx(21.777778, rel=1e-6, abs=6e-7)
    z = torch.tensor(0.3)
    both = [kto_losses(*sides, z, beta=0.1).item() for sides in ((CHOSEN, REJECTED), (z[None], z[None]))]
    assert both == pytest.approx([(0.482507 + 0.480011) / 2, 0.5], rel=1e-6, abs=6e-7)
    weighted = kto_losses(CHOSEN, REJECTED, z, beta=0.1, desirable=2.0, undesirable=0.0)
    assert weighted.item() == pytest.approx(0.482507, rel=1e-6, abs=6e-7)
    means = one(-2.5), one(-2.0)
    assert (log_odds(means[0]) - log_odds(means[1])).item() == pytest.approx(-0.559763, rel=1e-6, abs=6e-7)
    assert orpo_losses(*means, weight=0.1).item() == pytest.approx(2.5 + 0.1011695, rel=1e-6, abs=6e-7)
    assert simpo_losses(*means, beta=2.0, margin=1.0).item() == pytest.approx(2.126928, rel=1e-6, abs=6e-7)


def test_a_certain_answer_keeps_finite_odds_and_gradients() -> None:
    means = torch.tensor([0.0, -1e-12, -30.0], requires_grad=True)
    odds = log_odds(means)
    [gradient] = torch.autograd.grad(odds.sum(), means)
    assert odds.isfinite().all()
    assert gradient.isfinite().all()
    assert odds[2].item() == pytest.approx(-30.0)


def test_losses_of_rankings() -> None:
    pair, margin = torch.tensor([[1.2, 0.3]]), 0.5
    there = torch.ones(1, 2, dtype=torch.bool)
    assert bradley_terry_losses(pair, there).item() == pytest.approx(0.341154, rel=1e-6, abs=6e-7)
    assert bradley_terry_losses(pair, there, margin=margin).item() == pytest.approx(0.513015, rel=1e-6, abs=6e-7)
    assert plackett_luce_losses(pair, there).item() == pytest.approx(0.341154, rel=1e-6, abs=6e-7)
    four = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    there = torch.ones(1, 4, dtype=torch.bool)
    assert plackett_luce_losses(four, there).item() == pytest.approx(1.251552, rel=1e-6, abs=6e-7)
    assert bradley_terry_losses(four, there).item() == pytest.approx(0.227613, rel=1e-6, abs=6e-7)


@pytest.mark.parametrize("loss", [plackett_luce_losses, bradley_terry_losses, order_accuracy])
def test_a_shorter_ranking_beside_a_longer_one_keeps_its_loss_and_gradient(loss: Any) -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.3, 1.2, 9.0, 9.0]], requires_grad=True)
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    alone = scores[1:, :2]
    torch.testing.assert_close(loss(scores, there)[1:], loss(alone, there[1:, :2]))
    if loss is not order_accuracy:
        [gradient] = torch.autograd.grad(loss(scores, there).sum(), scores)
        [wanted] = torch.autograd.grad(loss(alone, there[1:, :2]).sum(), scores)
        torch.testing.assert_close(gradient[1], wanted[1])
        assert not gradient[1, 2:].any()
