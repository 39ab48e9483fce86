"""Records of a rendered dataset as samples: a text is a document, and its trained tokens have weight 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from fmscale.data.samples.protocol import BadRecord, Draw, Part, Record, Sample, TooLong
from fmscale.data.samples.rows import RowSamples
from fmscale.store.digest import canonical_json

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
    """Texts of a record, each as tokens and the tokens that follow them."""

    kind: ClassVar[str] = "rendered"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("tokens", "pieces", "trained")
    size_columns: ClassVar[tuple[str, ...]] = ("pieces",)
    """Columns that sizes are made of, where these are fewer."""
    too_long: TooLong
    """Rule for texts that are longer than a forward together."""
    max_tokens: int | None = None
    """Tokens after which a sample is cut; None unless `too_long` is cut."""
    reference: str | None = None
    """Maker's text of the derived column with the reference's log-probs; None for samples without."""

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        """Tokens, labels, weights, and the reference's log-probs where there are some."""
        reference = {REFERENCE: Part("float32", (2,), per_token=False)} if self.reference else {}
        return {**RowSamples.parts, **reference}

    @cached_property
    def derived(self) -> Mapping[str, str]:
        """Derived columns that are parts of a sample, with their makers' texts."""
        return {REFERENCE: self.reference} if self.reference else {}

    def size(self, record: Record) -> int:
        """Tokens that predict a token."""
        if record["pieces"] is None:
            raise BadRecord(
                "the record is not rendered",
                found="no column pieces",
                remedy="Render its dataset first: `fmscale dataset render STORE/DATASET --with RUN`.",
            )
        return sum(max(0, piece - 1) for piece in record["pieces"])

    def decode(self, record: Record) -> Any:
        """Ids, the mask of trained ids, and the tokens of each text."""
        runs = np.array(record["trained"], dtype=np.int64)
        trained = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        tokens, pieces = np.array(record["tokens"], dtype=np.int64), record["pieces"]
        if not sum(pieces) == len(tokens) == len(trained):
            raise BadRecord(
                "a rendered record's texts are not as long as its tokens",
                found=f"{len(tokens)} tokens, pieces of {sum(pieces)}, runs of {len(trained)}",
                remedy="Render the dataset again.",
            )
        return tokens, trained, pieces

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        """Tokens, labels and weights; a sample that is too long has the ends of its longest texts cut off."""
        ids, trained, pieces = media
        lengths = [max(0, piece - 1) for piece in pieces]
        kept = tuple(min(length, _most(lengths, limit)) for length in lengths)
        firsts = np.cumsum([0, *pieces])[:-1]
        at = np.concatenate([np.arange(first, first + count) for first, count in zip(firsts, kept, strict=True)])
        weights = trained[at + 1].astype(np.float32)
        return Sample({"tokens": ids[at], "labels": ids[at + 1], "weights": weights}, kept)


def _most(lengths: Sequence[int], limit: int) -> int:
    """Length to which each text is cut so that they have `limit` tokens or less together."""
    left = limit
    for number, length in enumerate(sorted(lengths)):
        if length > (share := left // (len(lengths) - number)):
            return share
        left -= length
    return limit


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of equal values of a mask, beginning with those that are False."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=not mask[-1] if len(mask) else False))
    runs: list[int] = np.diff(edges, prepend=0).tolist()
    return runs
