"""What a model is trained for: rows and a model to a loss as (sum, count)."""

from fmscale.objectives.loss import Loss
from fmscale.objectives.next_token import next_token
from fmscale.objectives.rows import Rows

__all__ = ["Loss", "Rows", "next_token"]
