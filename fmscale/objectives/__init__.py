"""Objectives: from a model and the inputs of a forward to a loss as (sum, count).

- `protocol.py`    `SampleBatch` (from a loader), `Inputs`, `Loss`, `Gather`, and `Objective`, which joins them
- `next_token.py`  cross-entropy of each token given the tokens before it
"""

from typing import Any

from fmscale.config.kinds import Own
from fmscale.config.objective import NextTokenConfig
from fmscale.objectives.next_token import NextToken
from fmscale.objectives.protocol import Gather, Inputs, Loss, Objective, SampleBatch, check_objective

__all__ = ["Gather", "Inputs", "Loss", "NextToken", "Objective", "SampleBatch", "check_objective", "make_objective"]


def make_objective(config: NextTokenConfig | Own) -> Objective:
    """The objective of `objective:`. Raises ConfigError for the user's own class if it lacks a method or a unit."""
    if type(config) is NextTokenConfig:
        return NextToken()
    own: Any = config
    return check_objective(own)
