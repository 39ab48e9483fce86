"""The tolerance policy of the kernel tests, shared by every op.

A kernel is judged by an fp64 golden result, against the error that a plain torch implementation
makes in the kernel's own dtype: max |ours - golden| <= 2 * max |eager - golden| + one ulp, as
flash-attention's tests do, and mean |ours - golden| <= 1.2 * mean |eager - golden|, as
FlexAttention's do. A maximum alone misses a systematic error, a mean alone a wrong corner.

One ulp of a result is the spacing of its dtype at its largest magnitude. For a small difference of large terms, which
the kernel and eager sum in different orders, it is the spacing of fp32, the type of all sums, at the largest sum of the
terms' magnitudes, if that is more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

MAX_RATIO = 2.0
MEAN_RATIO = 1.2
MEAN_FROM = 32
"""Count of numbers from which the mean is checked: with fewer numbers it varies as much as their maximum (sinks of 4
heads: 2.0).
"""
FP32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Largest and average absolute error against the golden result."""

    largest: float
    average: float


def ulp(magnitude: float, dtype: torch.dtype) -> float:
    """The spacing of `dtype` at `magnitude`."""
    power = 2.0 ** math.floor(math.log2(magnitude)) if magnitude else 0.0
    # max(): below this a value is subnormal and the spacing no longer shrinks
    return torch.finfo(dtype).eps * max(power, torch.finfo(dtype).tiny)


def deviation(result: torch.Tensor, golden: torch.Tensor) -> Deviation:
    """Errors over the finite elements; the caller checks that the others agree."""
    finite = golden.isfinite()
    error = (result.double() - golden)[finite].abs()
    if not error.numel():
        return Deviation(largest=0.0, average=0.0)
    return Deviation(largest=float(error.max()), average=float(error.mean()))


def check(
    ours: torch.Tensor,
    eager: torch.Tensor,
    golden: torch.Tensor,
    *,
    name: str = "result",
    terms: torch.Tensor | None = None,
) -> None:
    """Fail unless `ours` is as near to the fp64 `golden` as the same-dtype `eager` is.

    `terms`: sums of the summands' magnitudes, of any shape, for sums that cancel. Infinities of the golden
    result must be reproduced exactly; a NaN in ours is always a failure.
    """
    assert ours.shape == golden.shape, f"{name}: shape {tuple(ours.shape)}, golden {tuple(golden.shape)}"
    assert eager.dtype == ours.dtype, f"{name}: eager is {eager.dtype}, ours {ours.dtype}"
    assert golden.dtype == torch.float64, f"{name}: the golden result must be fp64"
    assert not bool(ours.isnan().any()), f"{name}: {int(ours.isnan().sum())} NaN of {ours.numel()}"
    infinite = golden.isinf()
    assert torch.equal(ours.double()[infinite], golden[infinite]), f"{name}: infinities differ"
    magnitude = golden[golden.isfinite()].abs()
    if not magnitude.numel():
        return
    unit, mean_unit = ulp(float(magnitude.max()), ours.dtype), FP32 * float(magnitude.mean())
    if terms is not None and terms.numel():
        unit = max(unit, ulp(float(terms.max()), torch.float32))
        mean_unit = max(mean_unit, FP32 * float(terms.mean()))
    mine, theirs = deviation(ours, golden), deviation(eager, golden)
    bound = MAX_RATIO * theirs.largest + unit
    assert mine.largest <= bound, f"{name}: max error {mine.largest:.3e} > {bound:.3e}"
    if magnitude.numel() < MEAN_FROM:
        return
    # one fp32 ulp of slack: eager can be exact by luck (a copy, a sum of one element), fp32 arithmetic cannot
    bound = MEAN_RATIO * theirs.average + mean_unit
    assert mine.average <= bound, f"{name}: mean error {mine.average:.3e} > {bound:.3e}"


def gradients(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: list[torch.Tensor],
    upstream: list[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of `function(*inputs)` and the gradients of sum(output * upstream) for every input.

    Inputs are copied as leaves; only floating-point inputs get a gradient. `upstream` is cast to each
    output's dtype, so that the golden run gets the exact values of the low-precision run.
    """
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    produced = function(*leaves)
    outputs = list(produced) if isinstance(produced, tuple) else [produced]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    pairs = [(o, u.to(o.dtype)) for o, u in zip(outputs, upstream, strict=True) if o.requires_grad]
    grads = torch.autograd.grad([o for o, _ in pairs], wanted, [u for _, u in pairs])
    return [o.detach() for o in outputs], list(grads)


def check_op(
    ours: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    eager: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: list[torch.Tensor],
    upstream: list[torch.Tensor],
) -> None:
    """Outputs and gradients of `ours` and `eager` on `inputs`, judged by `eager` in fp64."""
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    mine_out, mine_grad = gradients(ours, inputs, upstream)
    same_out, same_grad = gradients(eager, inputs, upstream)
    gold_out, gold_grad = gradients(eager, wide, upstream)
    for kind, a, b, g in (
        ("output", mine_out, same_out, gold_out),
        ("gradient", mine_grad, same_grad, gold_grad),
    ):
        for i, (m, s, w) in enumerate(zip(a, b, g, strict=True)):
            check(m, s, w, name=f"{kind} {i}")


def noted(kept: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook of saved_tensors_hooks that puts saved tensors into `kept`."""

    def note(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    return note
