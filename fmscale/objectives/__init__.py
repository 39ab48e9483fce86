"""Objectives: from a model and the inputs of a forward to a loss as (sum, count).

- `protocol.py`    `SampleBatch` (from a loader), `Inputs`, `Loss`, `Gather`, and `Objective`, which joins them
- `next_token.py`  cross-entropy of each token given the tokens before it
- `logps.py`       log-probs of documents, with the head at trained tokens alone
- `preference.py`  losses of preference pairs, as functions of log-probs
- `mismatched.py`  mismatched pairs of a step, for KTO
- `pairs.py`       DPO, IPO, KTO, ORPO and SimPO over such losses
- `reward.py`      scores of pairs and rankings
"""

from typing import Any

from fmscale.config.kinds import Own
from fmscale.config.objective import NextTokenConfig, ObjectiveConfig, PreferenceConfig, RewardConfig
from fmscale.objectives.next_token import NextToken
from fmscale.objectives.pairs import Pairs, make_pairs
from fmscale.objectives.protocol import Gather, Inputs, Loss, Objective, SampleBatch, check_objective
from fmscale.objectives.reward import Rewards

__all__ = [
    "Gather", "Inputs", "Loss", "NextToken", "Objective", "Pairs", "Rewards", "SampleBatch", "check_objective",
    "make_objective",
]  # fmt: skip


def make_objective(config: ObjectiveConfig | Own) -> Objective:
    """The objective of `objective:`. Raises ConfigError for the user's own class if it lacks a method or a unit."""
    if type(config) is NextTokenConfig:
        return NextToken()
    if type(config) is RewardConfig:
        return Rewards(config)
    if isinstance(config, PreferenceConfig):
        return make_pairs(config)
    own: Any = config
    return check_objective(own)
