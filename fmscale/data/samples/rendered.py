"""Rendered texts of a record as tokens, each of which predicts the next: a text is a document of the sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from fmscale.data.samples.protocol import BadRecord, Draw, Part, Record, Sample, TooLong
from fmscale.store.digest import canonical_json

PARTS = {"tokens": Part("int64"), "labels": Part("int64"), "weights": Part("float32")}
REFERENCE = "reference"
"""Name of the part, and of its derived column, with the log-prob of each of a pair's texts under a reference."""

VALUES_VERSION = 1
"""Version of the code that makes such values."""


def values_maker(kind: Literal["logps", "scores"], weights: str, precision: str) -> str:
    """Maker's text of a column of values that a model gives the texts of a record: log-probs of the trained tokens, or
    a reward model's scores. `weights` is the digest of a checkpoint's manifest, `precision` the type of the forward.
    """
    made = {"kind": kind, "version": VALUES_VERSION, "weights": weights, "precision": precision}
    return canonical_json(made).decode()


@dataclass(frozen=True, kw_only=True)
class RenderedSamples:
    """The texts of a rendered record, with weight 1 where the label is a trained token."""

    kind: ClassVar[str] = "rendered"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("tokens", "pieces", "trained")

    too_long: TooLong
    """Rule for a record that is longer than a forward."""
    reference: str | None = None
    """Maker's text of the derived column with the reference's log-probs; None for samples without."""

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        """Tokens, labels, weights, and the reference's log-probs where there are some."""
        return PARTS | ({REFERENCE: Part("float32", (2,), per_token=False)} if self.reference else {})

    @cached_property
    def derived(self) -> Mapping[str, str]:
        """Derived columns that are parts of a sample, with their makers' texts."""
        return {REFERENCE: self.reference} if self.reference else {}

    def size(self, record: Record) -> int:
        """Tokens that predict a token."""
        return sum(max(int(piece) - 1, 0) for piece in record["pieces"] or ())

    def decode(self, record: Record) -> Any:
        """Tokens of all texts, tokens of each, and 1 for each trained token."""
        tokens = np.asarray(record["tokens"], dtype=np.int64)
        pieces, runs = (np.asarray(record[name], dtype=np.int64) for name in ("pieces", "trained"))
        if pieces.sum() != len(tokens) or runs.sum() > len(tokens):
            raise BadRecord(
                "a rendered record's texts are not as long as its tokens",
                found=f"{len(tokens)} tokens, pieces of {pieces.sum()}, runs of {runs.sum()}",
                remedy="Render the dataset again.",
            )
        trained = np.zeros(len(tokens), dtype=np.float32)
        trained[: runs.sum()] = np.repeat(np.arange(len(runs)) % 2, runs)
        return tokens, pieces, trained

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        """Tokens and the tokens that follow them in their text."""
        tokens, pieces, trained = media
        last = np.cumsum(pieces[pieces > 0]) - 1
        inputs = np.ones(len(tokens), dtype=np.bool_)
        inputs[last] = False
        labels = np.flatnonzero(inputs) + 1
        tensors = {"tokens": tokens[inputs], "labels": tokens[labels], "weights": trained[labels]}
        return Sample(tensors, tuple(int(piece) - 1 for piece in pieces if piece > 1))
