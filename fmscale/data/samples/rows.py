"""Rows of a token view as samples, so that they can be mixed with records in flat forwards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fmscale.data.samples.protocol import Draw, Part, Record, Sample, TooLong


@dataclass(frozen=True, kw_only=True)
class RowSamples:
    """A row of T + 1 tokens as T tokens and the T tokens that follow them: what a stream row gives to training."""

    kind: ClassVar[str] = "rows"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("tokens", "pieces")
    parts: ClassVar[Mapping[str, Part]] = {
        "tokens": Part("int64"),
        "labels": Part("int64"),
        "weights": Part("float32"),
    }
    too_long: ClassVar[TooLong] = "refuse"

    def size(self, record: Record) -> int:
        """Tokens of the row but the last, which is a label only."""
        return len(record["tokens"]) - 1

    def decode(self, record: Record) -> Any:
        """The row and the lengths of its documents."""
        return record["tokens"], record["pieces"]

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        """A label at a document's beginning has weight 0: no earlier token may predict it."""
        ids, pieces = media
        weights = np.ones(len(ids) - 1, dtype=np.float32)
        weights[np.cumsum(pieces)[:-1] - 1] = 0
        # The last token is a label only, so that a document of this token alone is not among the inputs.
        inputs = (*pieces[:-1], pieces[-1] - 1) if pieces[-1] > 1 else tuple(pieces[:-1])
        return Sample({"tokens": ids[:-1], "labels": ids[1:], "weights": weights}, tuple(inputs))
