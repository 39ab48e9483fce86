"""A flat forward that a rank receives: whole samples, one after another, and their bounds.

Shapes: S samples, N positions (a multiple of 64; positions behind the last sample are padding).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowPiece:
    """A piece of a document in a row of tokens, or a whole record."""

    document: tuple[int, int]
    """Stable document id, high and low half; (0, 0) unless the loader reads ids."""
    offset: int
    """First token in the document; 0 for a record."""
    start: int
    """First token in the row; 0 for a record."""
    tokens: int
    """Number of tokens; 1 for a record."""


@dataclass(kw_only=True)
class FlatForward:
    """Samples of a forward."""

    parts: Mapping[str, Tensor]
    """Tensors of the specs by name: [1, N, ...], or [S, ...] for parts with a value a sample."""
    weights: Tensor
    """float32 [1, N]: weight of each position as a target; 0 in padding."""
    positions: Tensor
    """int64 [1, N]: position in its piece."""
    cu_seqlens: Tensor
    """int32 [pieces + 1]: bounds of the pieces, padding last."""
    bounds: Tensor
    """int64 [S + 1]: bounds of the samples; a sample without content has no position."""
    k: np.ndarray
    """uint64 [S]: sample numbers."""
    sample_source: np.ndarray
    """uint16 [S]: source of each sample."""
    row: np.ndarray
    """uint64 [S]: row ids in the sources' views."""
    step: int
    """Optimizer step that the samples belong to."""
    last_of_step: bool
    """True for the rank's last forward of the step."""
    pieces: Sequence[Sequence[RowPiece]]
    """Documents or record of each sample; empty unless the loader reads ids, and for a sample without content."""
    per_sample: frozenset[str] = frozenset()
    """Names of the parts with a value a sample."""

    @property
    def source(self) -> Tensor:
        """int64 [S]: source of each sample."""
        return torch.from_numpy(self.sample_source.astype(np.int64))

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.k)


def flat_forward(
    parts: Mapping[str, np.ndarray], weights: np.ndarray, cu_seqlens: np.ndarray, bounds: np.ndarray, **facts: Any
) -> FlatForward:
    """The forward of arrays on the host, with the position of each token in its piece; `facts` are the other fields."""
    ends = cu_seqlens.astype(np.int64)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
    return FlatForward(
        parts={name: torch.from_numpy(value) for name, value in parts.items()},
        weights=torch.from_numpy(weights),
        positions=torch.from_numpy(positions[None]),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        bounds=torch.from_numpy(bounds),
        **facts,
    )
