"""Preference and reward objectives: the same losses and gradient at any number of ranks and forwards, and stage."""

from typing import Any

import pytest
import torch

from fmscale.config import Config
from fmscale.config.objective import DpoConfig, KtoConfig, RewardConfig
from tests.helpers.ranks import run_ranks
from tests.train.engines import joined
from tests.train.preferences import config_of, run_steps

Case = tuple[Config, int, int]
EQUAL = 1e-6
"""Relative: losses differ by the order of fp32 sums alone."""


def alone(cases: list[Case]) -> list[tuple[list[dict[str, Any]], dict[Any, torch.Tensor]]]:
    """The same objectives at stage 0 on one rank, all samples in one forward."""
    whole = [(config_of(config.objective, 0), 1, answers) for config, _, answers in cases]  # type: ignore[arg-type]
    [found] = run_ranks(run_steps, 1, whole, timeout=120)
    return [(steps, joined([state])) for steps, state in found]


def check(size: int, cases: list[Case]) -> None:
    wanted = alone(cases)
    ranks = run_ranks(run_steps, size, cases, timeout=120)
    for number, (steps, whole) in enumerate(wanted):
        if "z" in steps[1]:
            assert steps[1]["z"] > 0
            own = [each[number][0][1]["z"] / each[number][0][1]["weight"] for each in ranks]
            assert own == pytest.approx([steps[1]["z"] / steps[1]["weight"]] * size, rel=1e-4), (
                "the step's z on each rank"
            )
        place = (size, cases[number][0].objective, cases[number][0].train.zero_stage, cases[number][1])
        for step, want in enumerate(steps):
            for name, value in want.items():
                found = sum(rank[number][0][step][name] for rank in ranks)
                # The second step follows an update, whose gradient is a sum of another order.
                assert found == pytest.approx(value, rel=1e-4 if step else EQUAL, abs=1e-5), (place, step, name)
        state = joined([rank[number][1] for rank in ranks])
        assert state.keys() == whole.keys()
        for key, value in whole.items():
            if key[1] == "exp_avg":
                assert (state[key] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-9, (place, key)
            if key[0].startswith("reference."):
                assert torch.equal(state[key], value), (place, key)


# With little weight on rejected answers all log-probs grow, so that z is above 0 in the second step.
KTO, DPO, REWARD = KtoConfig(undesirable=1e-3), DpoConfig(), RewardConfig()


def test_two_ranks_and_several_forwards_take_the_step_of_one() -> None:
    check(2, [(config_of(KTO, 3), 2, 2), (config_of(REWARD, 2), 2, 3)])


@pytest.mark.slow
def test_a_step_does_not_depend_on_ranks_forwards_and_stage() -> None:
    """12 pairs on 3 ranks: of 8 forwards some consist of fillers."""
    dpo = [(config_of(DPO, stage, recompute="full"), 8, 2) for stage in (0, 1, 3)]
    check(3, [*dpo, (config_of(KTO, 2), 8, 2), (config_of(REWARD, 3), 2, 4)])
