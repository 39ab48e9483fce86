"""Objectives: from a model and the inputs of a forward to a loss as (sum, count).

- `protocol.py`    `SampleBatch` (from a loader), `Inputs`, `Loss`, `Gather`, and `Objective`, which joins them
- `next_token.py`  cross-entropy of each token given the tokens before it
"""

from fmscale.errors import ConfigError
from fmscale.objectives.next_token import NextToken
from fmscale.objectives.protocol import Gather, Inputs, Loss, Objective, SampleBatch, check_objective

__all__ = ["Gather", "Inputs", "Loss", "NextToken", "Objective", "SampleBatch", "check_objective", "make_objective"]


def make_objective(config: object) -> Objective:
    """The objective of a config's section `objective`; None means next-token prediction."""
    if config is not None:
        raise ConfigError(
            "there is no objective of this kind", found=config, remedy="Leave the section `objective` out."
        )
    return NextToken()
