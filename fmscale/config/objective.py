"""The section `objective`: the loss that training minimises."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Cross-entropy of each token, given the tokens of its document before it."""

    kind: ClassVar[str] = "next_token"
