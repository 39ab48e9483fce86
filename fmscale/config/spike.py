"""The section `spike`: reaction to a step whose loss or gradient norm is not finite, or far above those before it."""

from dataclasses import dataclass
from typing import Literal

from fmscale.config.checks import above_zero, at_least


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """Loss spikes: steps whose loss or gradient norm is not finite, or far above those of the steps before it."""

    policy: Literal["stop", "skip", "back"] | None = None
    """stop: end as an error that names step and samples. skip: do not apply the step, and go on. back: restore an
    earlier checkpoint, ban the samples up to the spike from the order, and go on. A policy costs a sum over the ranks
    before each update. null: a step with a non-finite gradient is not applied, and nothing else is a spike."""
    threshold: float = 6.0
    """Distance above the median of the window from which a loss or norm is a spike, in robust standard deviations
    (1.4826 times the median absolute deviation, and at least 1 % of the median)."""
    window: int = 128
    """Newest applied steps that a loss and a norm are compared with. Before half of them are there, and in the first
    steps of a new stage, only a value that is not finite is a spike."""
    back: int = 1
    """back: checkpoints to go back, 1 for the newest; the oldest where there are fewer."""
    ban_steps: int = 200
    """back: most steps whose samples are banned, the spike's and those before it since the restored checkpoint."""
    limit: int = 10
    """Spikes that skip and back deal with in a run; the next stops it."""

    def __post_init__(self) -> None:
        above_zero(self, "threshold")
        at_least(self, 4, "window", hint="A median of fewer steps means nothing.")
        at_least(self, 1, "back", "ban_steps", "limit")
