"""Checks of numbers, for every contestant and every configuration before it is timed."""

from collections.abc import Sequence

import torch
from torch import Tensor

RELATIVE = 0.02
"""Largest ||ours - reference|| / ||reference||: bf16 rounds to 0.002, a wrong tile or mask is above 0.1."""
ROW = 0.1
"""Largest error of one row in its own norm ..."""
FLOOR = 0.2
"""... and in the root mean square of all rows' norms, for rows that cancel to nearly 0."""


def wrong(results: Sequence[Tensor], reference: Sequence[Tensor], *, limit: float = RELATIVE) -> str | None:
    """Reason why `results` differ from `reference`, in the same order, or None.

    The norm of a whole result finds small systematic errors. The norms of rows (the last dimension, single
    numbers of a vector) find a few wrong rows among very many or larger rows.
    """
    if len(results) != len(reference):
        return f"{len(results)} results instead of {len(reference)}"
    for index, (ours, wanted) in enumerate(zip(results, reference, strict=True)):
        if ours.shape != wanted.shape:
            return f"result {index} has shape {tuple(ours.shape)} instead of {tuple(wanted.shape)}"
        off, norm = _row_norms(ours.double() - wanted.double()), _row_norms(wanted.double())
        error = float(off.norm() / norm.norm().clamp_min(1e-30))
        if not error <= limit:  # NaN included
            return f"result {index} is off by {error:.3g} of its norm (limit {limit:g})"
        bad = off > ROW * norm + FLOOR * norm.square().mean().sqrt()
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            return f"result {index} is wrong in {int(bad.sum())} of {bad.numel()} rows, first in row {first}"
    return None


def _row_norms(t: Tensor) -> Tensor:
    return t.flatten(0, -2).norm(dim=-1) if t.dim() > 1 else t.abs().flatten()


def worse(results: Sequence[Tensor], eager: Sequence[Tensor], golden: Sequence[Tensor]) -> str | None:
    """Reason why `results` are less exact than `eager` results of the same dtype, or None.

    Errors are against the fp64 `golden`, with larger ratios than in the tests, as a rejection is final. The largest
    error is at most twice eager's plus one epsilon of the largest number. The mean error is at most 1.2 times
    eager's, plus one fp32 epsilon of the mean number and the chance error of a mean of so few numbers.
    """
    if len(results) != len(golden):
        return f"{len(results)} results instead of {len(golden)}"
    for index, (ours, theirs, exact) in enumerate(zip(results, eager, golden, strict=True)):
        if ours.shape != exact.shape or not bool(ours.isfinite().all()):
            return f"result {index} has a wrong shape or is not finite"
        mine, other = ((t.double() - exact.double()).abs() for t in (ours, theirs))
        unit = torch.finfo(ours.dtype).eps * float(exact.abs().max())
        noise = torch.finfo(torch.float32).eps * float(exact.abs().mean())
        noise += float(other.max()) / max(1, exact.numel()) ** 0.5
        if float(mine.max()) > 2 * float(other.max()) + unit:
            return f"result {index}: largest error {float(mine.max()):.3g}, eager {float(other.max()):.3g}"
        if float(mine.mean()) > 1.2 * float(other.mean()) + noise:
            return f"result {index}: mean error {float(mine.mean()):.3g}, eager {float(other.mean()):.3g}"
    return None
