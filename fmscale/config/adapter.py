"""The section `adapter`: low-rank matrices beside frozen weights."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from fmscale.config.checks import InvalidField, above_zero, at_least, not_empty

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Trains y = W x + scale B A x with W frozen, in place of W (LoRA, Hu et al., arXiv 2106.09685). The run begins
    with `train.init`: its base."""

    kind: Literal["lora", "rslora", "dora"] = "lora"
    """lora: scale is alpha / rank; rslora: alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732); dora: lora, and the
    length of each row of W + scale B A is trained by itself (Liu et al., arXiv 2402.09353)."""
    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """Numerator of the scale."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Linear layers with an adapter: all-linear for all in the blocks, or patterns of names in a block, such as
    attention.w[qv], or of whole names, such as layers.[0-3].feed_forward.*; embedding and head never have one."""
    dropout: float = 0.0
    """Share of the inputs of A that is dropped in training."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rank")
        above_zero(self, "alpha")
        not_empty("targets", self.targets, f"Give [{ALL_LINEAR}], or patterns of names.")
        if not 0 <= self.dropout < 1:
            raise InvalidField("dropout", "must lie in [0, 1)", found=self.dropout, remedy="Give 0 to drop nothing.")

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / (sqrt(self.rank) if self.kind == "rslora" else self.rank)
