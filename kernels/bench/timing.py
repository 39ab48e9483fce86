"""Times of several functions, taken alternately, each from a cold L2 cache."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

FLUSH_BYTES = 2**29
"""Written before each call: ten times an H200's L2, and 0.15 ms in which the launches queue up."""


class Clock(Protocol):
    """Something that can time one call."""

    def seconds(self, function: Callable[[], object]) -> float:
        """Time of one call of `function`, from a cold cache."""


class CudaClock:
    """Device time between two events around the call."""

    def __init__(self, device: torch.device) -> None:
        self._cold = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def seconds(self, function: Callable[[], object]) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._cold.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class WallClock:
    """Host time; for trying the benchmark's own logic where there is no GPU."""

    def seconds(self, function: Callable[[], object]) -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin


@dataclass(frozen=True, kw_only=True)
class Times:
    """Repeated measurements of one function."""

    median: float
    """Median in seconds."""
    low: float
    """20th percentile in seconds."""
    high: float
    """80th percentile in seconds."""
    repeats: int
    """Number of measurements."""


def summarize(seconds: list[float]) -> Times:
    """Median and spread of measurements in seconds."""
    cuts = statistics.quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 4
    return Times(median=statistics.median(seconds), low=cuts[0], high=cuts[-1], repeats=len(seconds))


def interleave(
    functions: Mapping[str, Callable[[], object]], clock: Clock, *, repeats: int, warmup: int = 2
) -> tuple[dict[str, Times], dict[str, str]]:
    """Times per function, and the error of each that failed.

    Every round runs all of them, every other round backwards (ABBA), so that drift of clocks and
    temperature falls on all alike. One that raises is left out from then on.
    """
    measured: dict[str, list[float]] = {name: [] for name in functions}
    failed: dict[str, str] = {}
    for turn in range(warmup + repeats):
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            if name in failed:
                continue
            try:
                seconds = clock.seconds(functions[name])
            except Exception as error:
                failed[name] = describe(error)
                continue
            if turn >= warmup:
                measured[name].append(seconds)
    return {n: summarize(s) for n, s in measured.items() if n not in failed}, failed


def describe(error: BaseException) -> str:
    """An error in one line, for the table of reasons."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
