"""An objective over all pairs of a step: the same loss and gradient at any number of ranks and forwards, and stage."""

import functools
from typing import Any

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.train.contrastive import PAIRS, Contrastive, Direct, config_of, step, wanted
from tests.train.engines import joined

BETA = config_of(0).optimizer.betas[0]
CLOSE = 1e-5
"""fp32 against fp64, relative to the largest element of a tensor."""
Case = tuple[Any, ...]


@functools.cache
def exact() -> Any:
    return wanted()


def case(stage: int, accumulation: int, objective: Any = Contrastive, **config: Any) -> Case:
    return config_of(stage, **config), objective(), accumulation


def steps(rank: int, size: int, cases: list[Case]) -> list[Any]:
    return [step(rank, size, *each) for each in cases]


def check(size: int, cases: list[Case]) -> None:
    """Train a step of each case on `size` ranks, and compare with fp64."""
    losses, gradients = exact()
    by_hand = torch.tensor([[sum(losses[0::2]), sum(losses[1::2])], [PAIRS / 2, PAIRS / 2]])
    for (config, objective, accumulation), ranks in zip(
        cases, zip(*run_ranks(steps, size, cases, timeout=120), strict=True), strict=True
    ):
        place = (size, config.train.zero_stage, accumulation, type(objective).__name__)
        assert sum(rank[0] for rank in ranks) == pytest.approx(sum(losses), rel=CLOSE), place
        torch.testing.assert_close(torch.tensor([rank[1] for rank in ranks]).sum(0), by_hand, rtol=CLOSE, atol=0.0)
        state = joined([rank[3] for rank in ranks])
        assert {name for name, _ in state} == gradients.keys()
        for name, gradient in gradients.items():
            found = state[name, "exp_avg"].double() / (1 - BETA)
            assert (found - gradient).abs().max() <= CLOSE * gradient.abs().max(), (place, name)
        if type(objective) is Contrastive:
            assert sum(rank[2]["loss"] for rank in ranks) == pytest.approx(sum(losses), rel=CLOSE), place


def test_two_ranks_with_forwards_of_fillers_take_the_step_of_one_process_in_fp64() -> None:
    check(2, [case(0, 4), case(3, 4), case(2, 1, Direct)])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_does_not_depend_on_ranks_forwards_and_stage(size: int) -> None:
    """12 pairs: at 8 or 16 forwards some consist of fillers."""
    check(size, [case(stage, accumulation) for stage in range(4) for accumulation in (1, 4)])
    check(size, [case(stage, 1, Direct) for stage in range(4)])


@pytest.mark.parametrize(
    "stage", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_a_forward_repeats_the_features_and_dropout_of_before(stage: int) -> None:
    """The cached gradient belongs to the features of the same dropout, also in bf16 and under recompute."""
    drops = [case(stage, 2, precision=precision, recompute="full", dropout=0.3) for precision in ("fp32", "bf16")]
    for fp32, bf16, plain in run_ranks(steps, 2, [*drops, case(stage, 2)], timeout=120):
        assert [each[2]["changed"] for each in (fp32, bf16, plain)] == [0.0] * 3
        assert abs(fp32[0] - plain[0]) > 1e-3, "no dropout"
