"""One row of the benchmark: fmscale's kernel and the peers on one problem, checked, then timed alternately."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.timing import SPENT, Clock, interleave, reason_of
from benchmarks.kernels.verdict import wrong


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One implementation, ready to run."""

    run: Callable[[], object]
    """The call that is timed."""
    numbers: Callable[[], list[Tensor]]
    """Runs the contestant and gives the tensors to compare with the reference."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A problem on a device."""

    makers: Mapping[str, Callable[[], Contestant]]
    """Builder of the contestant per name ("ours", then the peers); its error becomes the contestant's reason."""
    reference: Callable[[], list[Tensor]]
    """The right numbers, in fp32 or fp64."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Peers that cannot take part in this problem at all, each with the reason."""
    finish: Callable[[], Mapping[str, float]] = dict
    """Further figures of fmscale's kernel, measured after the timing: "extra GiB"."""


@dataclass(frozen=True, kw_only=True)
class ContestRow:
    """One case of a claim."""

    id: str
    """Id of the claim that the row belongs to."""
    variant: str
    """Difference from the other rows of the claim: "T=8192"."""
    unit: str
    """"TFLOP/s" or "TB/s"; decides whether flops or bytes are divided by the time."""
    flops: float
    """Floating-point operations, by the convention of the claim."""
    bytes: float
    """Bytes that every implementation must move."""
    build: Callable[[torch.device], Contest]
    """Makes the problem."""

    @property
    def work(self) -> float:
        """Work that is divided by the time, in units of the row's unit."""
        return (self.flops if self.unit == "TFLOP/s" else self.bytes) / 1e12


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of a row."""

    id: str
    """The row's claim."""
    variant: str
    """The row's variant."""
    unit: str
    """Unit of `rates`."""
    intensity: float
    """Operations per byte."""
    flops: float
    """Operations, for the roofline plot."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Work per second by contestant, at the median time."""
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Median, 20th and 80th percentile in seconds, by contestant."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Reason of each contestant without a rate."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further figures of fmscale's kernel."""


def unmeasured(row: ContestRow, reason: str) -> Run:
    """The run of a row that was not tried."""
    return Run(
        id=row.id, variant=row.variant, unit=row.unit, intensity=row.flops / row.bytes, flops=row.flops,
        reasons={"ours": reason},
    )  # fmt: skip


def hold(
    row: ContestRow, device: torch.device, clock: Clock, *, repeats: int, warmup: int = 2,
    only: Collection[str] | None = None, skip: Collection[str] = (), deadline: float = math.inf,
    trying: Callable[[str], None] = lambda _: None,
) -> Run:  # fmt: skip
    """Check every contestant's numbers, then time those that were right, until `deadline`.

    `only` names the contestants to try, `skip` the contestants to leave out; `trying` gets each name before its run.
    Raises DeviceBroken when a contestant breaks the device.
    """

    def failure(error: Exception) -> str:
        return reason_of(error, device)

    trying("the reference")
    contest = row.build(device)
    reference = contest.reference()
    ready: dict[str, Contestant] = {}
    reasons: dict[str, str] = dict(contest.absent)
    for name, make in contest.makers.items():
        if name in skip or (only is not None and name not in only):
            continue
        if time.monotonic() > deadline:
            reasons[name] = f"not tried: {SPENT}"
            continue
        trying(name)
        try:
            contestant = make()
            why = wrong(contestant.numbers(), reference)
        except Exception as error:
            why = failure(error)
        if why is None:
            ready[name] = contestant
        else:
            reasons[name] = why
    del reference
    times, failed = interleave(
        {n: c.run for n, c in ready.items()}, clock, repeats=repeats, warmup=warmup, deadline=deadline,
        trying=trying, failure=failure,
    )  # fmt: skip
    extra: dict[str, Any] = {}
    if "ours" in times:
        trying("ours")
        try:
            extra = dict(contest.finish())
        except Exception as error:
            failed["ours, further figures"] = failure(error)
    return Run(
        id=row.id, variant=row.variant, unit=row.unit, intensity=row.flops / row.bytes, flops=row.flops,
        rates={name: row.work / t.median for name, t in times.items()},
        times={name: asdict(t) for name, t in times.items()},
        reasons=reasons | failed, extra=extra,
    )  # fmt: skip


Function = Callable[..., Any]
Select = Callable[[list[Tensor]], list[Tensor]]


def listed(value: Any) -> list[Tensor]:
    """The tensors of an op's result, one or several."""
    return list(value) if isinstance(value, (tuple, list)) else [value]


def forward_of(function: Function, inputs: list[Tensor], select: Select = lambda t: t) -> Contestant:
    """Times the forward; `select` picks the outputs to compare."""

    @torch.no_grad()
    def run() -> Any:
        return function(*inputs)

    return Contestant(run=run, numbers=lambda: select(listed(run())))


def backward_of(
    function: Function, inputs: list[Tensor], upstream: list[Tensor], select: Select = lambda t: t
) -> Contestant:
    """Times the backward alone, through a graph that is kept; gradients of every floating-point input."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = listed(function(*leaves))[: len(upstream)]
    wanted = [t for t in leaves if t.requires_grad]

    def run() -> list[Tensor]:
        return list(torch.autograd.grad(outputs, wanted, upstream, retain_graph=True))

    return Contestant(run=run, numbers=lambda: select(run()))


def both_of(
    function: Function, inputs: list[Tensor], upstream: list[Tensor], select: Select = lambda t: t
) -> Contestant:
    """Times forward and backward together."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    wanted = [t for t in leaves if t.requires_grad]

    def run() -> list[Tensor]:
        outputs = listed(function(*leaves))[: len(upstream)]
        return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, wanted, upstream))

    return Contestant(run=run, numbers=lambda: select(run()))
