"""Specs: the way from records of a dataset to samples."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from fmscale.config.checks import at_least, not_empty


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Text in a column of a record, as tokens that each predict the next."""

    kind: ClassVar[str] = "text"
    field: str = "text"
    """Column with the text."""
    tokenizer: str | None = None
    """Tokenizer: `bytes`, the path of a tokenizer.json, or a dataset of the store that has one; null takes that of
    the run's token datasets."""
    bos: bool = False
    """Put a BOS token before each text."""
    eos: bool = True
    """Put an EOS token after each text."""
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    """Texts that are longer than a forward: refuse to begin, leave them out, or cut their end off."""
    max_tokens: int | None = None
    """Tokens after which `cut` cuts; null takes the length of a forward."""

    def __post_init__(self) -> None:
        not_empty("field", self.field, "Name the text's column.")
        at_least(self, 1, "max_tokens")


@dataclass(frozen=True, kw_only=True)
class RenderedSpec:
    """Chats, answers, pairs and rankings that `fmscale dataset render` made into tokens. The texts of a record are one
    sample, never split, and each is a document of its own; the loss is on trained tokens. A rendered dataset has this
    spec without being told."""

    kind: ClassVar[str] = "rendered"
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    """Samples that are longer than a forward: refuse to begin, leave them out, or cut the ends of their texts off."""
    max_tokens: int | None = None
    """Tokens of a sample after which `cut` cuts; null takes the length of a forward."""
    reference: str | None = dataclasses.field(default=None, metadata={"read": False})
    """Maker's text of the column of reference log-probs; a run sets it from `objective.reference`."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_tokens")
