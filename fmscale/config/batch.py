"""The section `batch`: two of three numbers; `derived.py` computes the third."""

from dataclasses import dataclass
from typing import Literal

from fmscale.config.checks import at_least


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Two of global_batch, micro_batch and accumulation; `derive_batch` finds the third."""

    global_batch: int | None = None
    """Rows of one optimizer step, over all ranks."""
    micro_batch: int | None = None
    """Rows of one forward on one rank."""
    accumulation: int | None = None
    """Forwards of one rank in one optimizer step."""
    uneven: Literal["refuse", "fill"] = "refuse"
    """A global batch that the ranks cannot share evenly is refused; `fill` completes the last forwards with
    rows of weight zero, so that a run can go on at any number of ranks with the same global batch."""

    def __post_init__(self) -> None:
        at_least(self, 1, "global_batch", "micro_batch", "accumulation")
