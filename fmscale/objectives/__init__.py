"""What a model is trained for: rows and a model to a loss as (sum, count)."""

from fmscale.objectives.inputs import Inputs
from fmscale.objectives.loss import Loss
from fmscale.objectives.next_token import next_token

__all__ = ["Inputs", "Loss", "next_token"]
