"""Objectives: functions from a model and its inputs to a loss as (sum, count).

- `protocol.py`    `Inputs` (tensors of a forward), `Loss` (a sum and its divisor), `Objective` (inputs to loss)
- `next_token.py`  cross-entropy of each token given the tokens before it
"""

from typing import Any, cast

from fmscale.config.kinds import Own, kind_of
from fmscale.config.objective import NextToken
from fmscale.errors import ConfigError
from fmscale.objectives.next_token import next_token
from fmscale.objectives.protocol import Inputs, Loss, Objective

__all__ = ["Inputs", "Loss", "make_objective", "next_token"]


def make_objective(config: NextToken | Own) -> Objective:
    """The objective of the section `objective`. Raises ConfigError for a class of the user's own without `__call__`."""
    if type(config) is NextToken:
        return next_token
    own: Any = config
    if not callable(own):
        raise ConfigError(
            "objective.kind names a class that cannot be called",
            found=kind_of(config),
            remedy="Give it `def __call__(self, model: torch.nn.Module, inputs: Inputs) -> Loss`.",
        )
    return cast(Objective, own)
