"""The contract of a spec: a record of a dataset becomes a sample, named tensors and a length in tokens.

    record ── decode ──► media ── make, with draw ──► sample
    columns              text, picture, wave          tensors of `length` tokens each

The functions are pure, so a sample is a function of (record, seed, k) on every machine and at any number of ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fmscale.errors import DataError
from fmscale.runtime.draw import draw, row_key

Record = Mapping[str, Any]
"""Values of a record by column; None for a column that its segment lacks."""

TooLong = Literal["refuse", "drop", "cut"]
"""Rule for a record that is longer than a forward: end before the first step, leave it out, or cut its end off."""


WEIGHTS = "weights"
"""Name of the part with the weights of targets, which a spec may leave out."""


class BadRecord(DataError):
    """A record that cannot become a sample, by its own fault."""


class Part(NamedTuple):
    """A named tensor of a spec's samples."""

    dtype: str
    """Numpy name of the type in a forward."""
    shape: tuple[int, ...] = ()
    """Shape of a token's, or sample's, value."""
    per_token: bool = True
    """True for a value a token, False for a value a sample."""


class Sample(NamedTuple):
    """A sample."""

    tensors: dict[str, np.ndarray]
    """Tensors by part: [length, ...], or the part's shape alone where a sample has a single value."""
    pieces: tuple[int, ...]
    """Tokens of each document in it: attention does not cross their bounds."""

    @property
    def length(self) -> int:
        """Tokens."""
        return sum(self.pieces)


NO_SAMPLE = Sample({}, ())
"""Sample without content, in the place of a record that cannot be used."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Randomness of a sample: crops, masks and cuts draw from here and from nowhere else."""

    seed: int
    """Seed of the source's order."""
    k: int
    """Number of the sample."""

    def __call__(self, purpose: str, n: int = 1) -> NDArray[np.float64]:
        """`n` uniform numbers from (0, 1), equal for equal (seed, k, purpose)."""
        return draw(self.seed, purpose, self.k, n=n)

    def key(self, purpose: str) -> int:
        """Key of 64 bits, from which a device draws the same words (`runtime.draw.words`)."""
        return row_key(self.seed, purpose, self.k)


class Spec(Protocol):
    """Makes samples of the records of a view. A class of the user's own is a frozen dataclass with these members.

    Threads share it. Its fields and `version` are in the view's digest: a change of its samples changes `version`.
    """

    @property
    def version(self) -> int:
        """Version of decoder and make-function."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that `decode` reads. Rows of tokens have `tokens`, their ids, and `pieces`, lengths of documents."""
        ...

    @property
    def parts(self) -> Mapping[str, Part]:
        """Tensors of a sample by name. `weights`, float32, are the weights of its targets; 1 without such a part."""
        ...

    @property
    def too_long(self) -> TooLong:
        """Rule for records that are longer than a forward. A class of the user's own that may cut has a field
        `max_tokens: int | None`: the length of a cut sample. None, or more than a forward, becomes a forward's length.
        """
        ...

    def size(self, record: Record) -> int:
        """Upper bound of the sample's length before any cut, from 0 for an empty record. Raises BadRecord."""
        ...

    def decode(self, record: Record) -> Any:
        """The media of a record. Any error counts as damage of the record."""
        ...

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        """The sample, at most `limit` tokens long; only a spec that cuts is given media for more."""
        ...
