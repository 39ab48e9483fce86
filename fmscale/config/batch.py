"""The section `batch`: two of three numbers; `derived.py` computes the third."""

from dataclasses import dataclass
from typing import Literal

from fmscale.config.checks import InvalidField, at_least


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Two of global_batch, micro_batch and accumulation; `derive_batch` finds the third."""

    global_batch: int | None = None
    """Rows of one optimizer step, over all ranks."""
    micro_batch: int | None = None
    """Rows of one forward on one rank."""
    accumulation: int | None = None
    """Forwards of one rank in one optimizer step."""
    forward_tokens: int | None = None
    """Most tokens of a flat forward, a multiple of 64: samples of any length are packed into forwards, and
    global_batch counts samples. Null packs rows of `data.sequence_length` tokens."""
    uneven: Literal["refuse", "fill"] = "refuse"
    """A global batch that the ranks cannot share evenly is refused; `fill` completes the last forwards with
    rows of weight zero, so that a run can go on at any number of ranks with the same global batch."""

    def __post_init__(self) -> None:
        at_least(self, 1, "global_batch", "micro_batch", "accumulation")
        if self.forward_tokens is not None:
            if self.forward_tokens < 64 or self.forward_tokens % 64:
                found, remedy = self.forward_tokens, f"Take {max(1, round(self.forward_tokens / 64)) * 64}."
                raise InvalidField("forward_tokens", "must be a multiple of 64", found=found, remedy=remedy)
            if self.micro_batch or self.accumulation or not self.global_batch:
                raise InvalidField(
                    "forward_tokens",
                    "decides how many samples a forward takes, and needs global_batch alone",
                    found={"global_batch": self.global_batch, "micro_batch": self.micro_batch},
                    remedy="Give global_batch, and leave out micro_batch and accumulation.",
                )
