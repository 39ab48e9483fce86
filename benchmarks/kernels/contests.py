"""The benchmark's service, and the run of all rows through it within the time that one run may take."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.kernels.ceilings import Ceilings, measure_ceilings
from benchmarks.kernels.contest import ContestRow, Run, hold, unmeasured
from benchmarks.kernels.serve import resolve
from benchmarks.kernels.timing import SPENT, Clock, CudaClock, WallClock
from benchmarks.kernels.workshop import Workshop
from fmscale.errors import KernelError

SERVICE = "benchmarks.kernels.contests"


def service(rows: str) -> Callable[[Mapping[str, Any], Callable[[str], None]], dict[str, Any]]:
    """Answers {"ceilings": {...}} and {"row": index, ...} for the rows that "module:function" returns.

    "only": names of the contestants to try, null for all; "skip": names of the contestants to leave out.
    """
    every: list[ContestRow] = resolve(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock: Clock = CudaClock(device) if device.type == "cuda" else WallClock()

    def answer(request: Mapping[str, Any], trying: Callable[[str], None]) -> dict[str, Any]:
        if "ceilings" in request:
            return asdict(measure_ceilings(device, clock, **request["ceilings"]))
        try:
            run = hold(
                every[request["row"]], device, clock, repeats=request["repeats"], only=request["only"],
                skip=request["skip"], deadline=time.monotonic() + request["seconds"], trying=trying,
            )  # fmt: skip
        finally:
            torch.compiler.reset()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return {"run": asdict(run)}

    return answer


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Times of `time.monotonic()`."""

    soft: float
    """No row, contestant or round begins after this time."""
    hard: float
    """A contest that still runs at this time is ended."""


def measure(
    rows: str, *, repeats: int, budget: Budget, say: Callable[[str], None],
    ceilings: Mapping[str, int] | None = None, patience: float = 120.0,
    only: Callable[[ContestRow], bool] = lambda row: True, done: Callable[[Ceilings | Run], None] = lambda _: None,
) -> tuple[Ceilings, list[Run]]:  # fmt: skip
    """The device's two ceilings, then every row that "module:function" `rows` returns and `only` takes, in that order.
    `done` gets each result at once; that of a row with all contestants follows that of fmscale's kernel alone.

    Every row first runs with fmscale's kernel alone, so that it has this figure even if the peers' compilers spend
    the budget. A contestant without a rate has a reason. A contestant that ends, breaks or hangs the worker is left
    out, and the row runs again. `ceilings` are options of `measure_ceilings`. Raises KernelError when the device
    cannot even copy or multiply.
    """
    with Workshop(SERVICE, rows, patience) as workshop:
        answer = workshop.ask({"ceilings": dict(ceilings or {})}, deadline=budget.hard)
        if not answer["ok"]:
            raise KernelError(
                "the device's limits cannot be measured", found=answer["reason"],
                remedy="Check the device with nvidia-smi and torch.cuda.",
            )  # fmt: skip
        limits = Ceilings(copy=answer["copy"], matmul=answer["matmul"])
        say(f"copy {limits.copy:.3f} TB/s, matmul {limits.matmul:.0f} TFLOP/s")
        done(limits)
        every: list[ContestRow] = resolve(rows)
        alone: dict[int, Run] = {}
        for index, row in enumerate(every):
            if only(row):
                alone[index] = hold_in(workshop, index, row, repeats, budget, only=["ours"])
                done(alone[index])
        runs = []
        for index, ours in alone.items():
            runs.append(or_alone(hold_in(workshop, index, every[index], repeats, budget), ours))
            done(runs[-1])
            say(_line(runs[-1]))
    return limits, runs


def or_alone(run: Run, alone: Run) -> Run:
    """`run`; if its time did not suffice for fmscale's kernel, the earlier run `alone` of this kernel."""
    if not run.reasons.get("ours", "").endswith(SPENT):
        return run
    others = {name: why for name, why in run.reasons.items() if name != "ours"}
    return replace(alone, reasons={**others, **alone.reasons})


def hold_in(
    workshop: Workshop, index: int, row: ContestRow, repeats: int, budget: Budget,
    *, only: Sequence[str] | None = None,
) -> Run:  # fmt: skip
    """The run of a row with the contestants `only` (None: all), without any that ends, breaks or hangs the worker."""
    fatal: dict[str, str] = {}
    while True:
        left = budget.soft - time.monotonic()
        if left <= 0:
            why = f"not measured: {SPENT}"
            return replace(unmeasured(row, why), reasons={"ours": why} | fatal)
        request = {"row": index, "repeats": repeats, "seconds": left, "only": only, "skip": list(fatal)}
        answer = workshop.ask(request, deadline=budget.hard)
        if answer["ok"]:
            run = Run(**answer["run"])
            return replace(run, reasons={**run.reasons, **fatal})
        culprit, reason = answer["trying"], answer["reason"]
        if culprit is None or culprit == "the reference" or culprit in fatal:
            run = unmeasured(row, f"not measured: {reason}")
            return replace(run, reasons={**run.reasons, **fatal})
        fatal[culprit] = reason


def _line(run: Run) -> str:
    rates = ", ".join(f"{name} {rate:.4g}" for name, rate in run.rates.items())
    missing = "; ".join(f"{name}: {reason}" for name, reason in run.reasons.items())
    return f"{run.id} {run.variant}: {rates} {run.unit if rates else ''} [{missing}]"
