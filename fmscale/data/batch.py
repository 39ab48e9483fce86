"""Microbatch that a rank receives: rows of tokens, and the bounds of their documents.

Shapes: B rows of a microbatch (fillers included). A row is T + 1 delivered tokens: T inputs, and the label of the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDocuments:
    """Documents of one unit, in the unit's own token positions."""

    ends: np.ndarray
    """int64 [documents]: exclusive end of each document; a document that continues behind the unit ends with it."""
    offset: int
    """Tokens of the first document that lie before the unit."""
    ids: np.ndarray | None
    """uint64 [documents, 2]: stable document ids; None unless the loader reads ids."""

    def pieces(self, start: int, length: int) -> Iterator[tuple[tuple[int, int], int, int, int]]:
        """Pieces of documents in a row, which has `length` tokens of the unit from `start` on: id, or (0, 0) without
        ids; first token in the document, and in the row; tokens.
        """
        first = int(np.searchsorted(self.ends, start, side="right"))
        begin = int(self.ends[first - 1]) if first else -self.offset
        position, stop = start, start + length
        for index in range(first, len(self.ends)):
            end = min(int(self.ends[index]), stop)
            if end > position:  # the document has tokens
                document = (0, 0) if self.ids is None else (int(self.ids[index, 0]), int(self.ids[index, 1]))
                yield document, position - begin, position - start, end - position
            position = begin = end
            if end == stop:
                break


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSpan:
    """A piece of a document inside a row."""

    row: int
    start: int
    """First token position in the row."""
    stop: int
    """Position behind its last token in the row."""
    document: tuple[int, int]
    """Stable document id, high and low half; (0, 0) unless the loader reads ids."""
    offset: int
    """Position of the first token inside its document."""


@dataclass(kw_only=True)
class Microbatch:
    """Rows of a forward: the `SampleBatch` of objectives, and the rows as they were delivered.

    The loader reuses the buffer of `tokens` only when no tensor refers to it: callers may keep the tensor.
    """

    tokens: torch.Tensor
    """int64 [B, T + 1]."""
    k: np.ndarray
    """uint64 [rows]: sample number of each real row; fillers follow after the real rows."""
    row_source: np.ndarray
    """uint16 [rows]: source of each real row."""
    row: np.ndarray
    """uint64 [rows]: row id in the source's view."""
    step: int
    """Optimizer step that the rows belong to."""
    last_of_step: bool
    """True for the rank's last microbatch of the step."""
    documents: Sequence[UnitDocuments]
    """Documents of the unit behind each real row."""
    offsets: Sequence[int]
    """Token position of each real row inside its unit."""

    @property
    def rows(self) -> int:
        """Real rows; the other B - rows are fillers with zero weight."""
        return len(self.k)

    @cached_property
    def spans(self) -> list[DocumentSpan]:
        """Every piece of a document in the batch, row by row, in order."""
        length = self.tokens.shape[1]
        return [
            DocumentSpan(row=row, start=first, stop=first + tokens, document=document, offset=offset)
            for row, (unit, start) in enumerate(zip(self.documents, self.offsets, strict=True))
            for document, offset, first, tokens in unit.pieces(start, length)
        ]

    @cached_property
    def piece_bounds(self) -> torch.Tensor:
        """int32 [pieces + 1]: bounds of the pieces of documents in the delivered tokens, read as one sequence. Every
        row, a filler too, begins a piece.
        """
        length = self.tokens.shape[1]
        ends = [span.row * length + span.stop for span in self.spans]
        ends += [(row + 1) * length for row in range(self.rows, self.tokens.shape[0])]
        return torch.tensor([0, *ends], dtype=torch.int32)

    @cached_property
    def token_positions(self) -> torch.Tensor:
        """int64 [B, T + 1]: position of each delivered token in its piece, from 0 at every document and row."""
        cu = self.piece_bounds.to(torch.int64)
        lengths = cu[1:] - cu[:-1]
        flat = torch.arange(int(cu[-1])) - torch.repeat_interleave(cu[:-1], lengths)
        return flat.view(self.tokens.shape)

    @cached_property
    def loss_weights(self) -> torch.Tensor:
        """float32 [B, T + 1]: weight of each delivered token as a target. 0 in fillers and for the first token of a row
        or a document, which no earlier token may predict; 1 elsewhere.
        """
        weights = (self.token_positions != 0).to(torch.float32)
        weights[self.rows :] = 0.0
        return weights

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """`tokens` and `labels`, int64 [B, T]: T inputs, and the T tokens that follow them."""
        return {"tokens": self.tokens[:, :-1], "labels": self.tokens[:, 1:]}

    @cached_property
    def weights(self) -> torch.Tensor:
        """float32 [B, T]: weight of each label."""
        return self.loss_weights[:, 1:]

    @property
    def positions(self) -> torch.Tensor:
        """int64 [B, T]: position of each input in its piece."""
        return self.token_positions[:, :-1]

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """int32 [pieces + 1]: bounds of the pieces of documents in the inputs, without a piece that only has a row's
        last label.
        """
        starts = torch.nonzero(self.positions.reshape(-1) == 0).flatten()
        return torch.cat((starts, torch.tensor([self.positions.numel()]))).to(torch.int32)

    @property
    def bounds(self) -> torch.Tensor:
        """int32 [B + 1]: bounds of the rows in the inputs."""
        B, T = self.positions.shape
        return torch.arange(0, B * T + 1, T, dtype=torch.int32)

    @property
    def source(self) -> torch.Tensor:
        """int64 [B]: source of each row; -1 for a filler."""
        source = torch.full((self.tokens.shape[0],), -1, dtype=torch.int64)
        source[: self.rows] = torch.from_numpy(self.row_source.astype("int64"))
        return source


def fillers(rows: int, length: int) -> Microbatch:
    """Rows of `length` inputs, of which none has a weight."""
    none, tokens = np.zeros(0, dtype=np.uint64), torch.zeros((rows, length + 1), dtype=torch.int64)
    real: dict[str, Any] = {
        "k": none,
        "row_source": none.astype(np.uint16),
        "row": none,
        "documents": (),
        "offsets": (),
    }
    return Microbatch(tokens=tokens, step=0, last_of_step=True, **real)
