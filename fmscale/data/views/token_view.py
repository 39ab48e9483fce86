"""Views of token datasets: a row is so many tokens of a commit's kept tokens, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fmscale.data.views.view import UNIT_BYTES, WINDOW, View, common_part
from fmscale.errors import DataError
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset

STREAM = "stream"
"""Packing: rows are slices of a commit's kept tokens, one after another; a tail below a row is left out."""


@dataclass(frozen=True, kw_only=True)
class TokenView(View):
    """Rows of `sequence_length` tokens."""

    kind: ClassVar[str] = "tokens"
    sequence_length: int
    """T: tokens of a row as it is delivered."""
    packing: str
    """Way in which documents become rows: `stream`."""
    tokenizer: str | None
    bos: int | None
    """Token before each document, if any."""
    eos: int | None
    """Token after each document, if any."""
    dtype: str
    """Type of a stored token, `uint16` or `uint32`."""
    tokens: tuple[int, ...]
    """Kept tokens of each commit."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens of each commit."""
        return self.tokens

    @property
    def row_length(self) -> int:
        """Tokens of a row."""
        return self.sequence_length


def make_view(
    dataset: Dataset,
    *,
    sequence_length: int,
    split: str = "train",
    commits: Sequence[int] | None = None,
    masks: Sequence[str] = (),
    rows_per_unit: int | None = None,
    window: int = WINDOW,
    spec: str = "",
    live: Sequence[Commit] | None = None,
) -> TokenView:
    """The view of live commits (`live`, if known), or of `commits`, with `sequence_length` tokens a row.

    `rows_per_unit` makes a unit just reach 256 KiB by default. Raises DataError if no commit has the split, if it holds
    less than a row, or if the dataset holds records.
    """
    if sequence_length < 1 or window < 1 or (rows_per_unit is not None and rows_per_unit < 1):
        raise DataError(
            "sequence_length, rows_per_unit and window are at least 1",
            found=(sequence_length, rows_per_unit, window),
            remedy="Only rows_per_unit may be left out.",
        )
    chosen, tokens, common = common_part(
        dataset, "tokens", split=split, commits=commits, masks=masks, window=window, spec=spec, live=live
    )
    first = chosen[0]
    row_bytes = sequence_length * np.dtype(first.dtype).itemsize
    view = TokenView(
        sequence_length=sequence_length,
        packing=STREAM,
        rows_per_unit=-(-UNIT_BYTES // row_bytes) if rows_per_unit is None else rows_per_unit,
        tokenizer=first.tokenizer,
        bos=first.bos,
        eos=first.eos,
        dtype=first.dtype,
        tokens=tokens,
        **common,
    )
    if not sum(view.rows):
        raise DataError(
            f"The split {split} of dataset {dataset.name} is shorter than a row in every commit",
            found=f"{sum(tokens)} tokens",
            remedy=f"Use a sequence_length below {max(tokens) + 1}, or ingest more.",
        )
    return view
