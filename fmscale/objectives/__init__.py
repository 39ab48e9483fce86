"""Objectives: functions from a model and its inputs to a loss as (sum, count).

- `protocol.py`    `Inputs` (tensors of a forward), `Loss` (a sum and its divisor), `Objective` (inputs to loss)
- `next_token.py`  cross-entropy of each token given the tokens before it
"""

from fmscale.objectives.next_token import next_token
from fmscale.objectives.protocol import Inputs, Loss

__all__ = ["Inputs", "Loss", "next_token"]
