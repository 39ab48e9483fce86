"""What a model is trained for: rows and a model to a loss as (sum, count)."""

from fmscale.objectives.inputs import Rows
from fmscale.objectives.loss import Loss
from fmscale.objectives.next_token import next_token

__all__ = ["Loss", "Rows", "next_token"]
