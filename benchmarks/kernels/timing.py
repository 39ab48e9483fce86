"""Times of several functions, taken alternately, each from a cold L2 cache."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

FLUSH_BYTES = 2**29
"""Bytes written before each call: ten times an H200's L2."""
FLUSHES = 4
"""Number of these writes: they take 0.5 ms, in which the launches queue up, so that host time is not measured."""
READ_BYTES = 2**27
"""Bytes read behind the writes, so that the written lines leave the cache before the call and not during it: they are
up to a fifth of the traffic of a kernel of 268 MB.
"""
SLOW = 3.0
"""Total seconds of a function after which it gets only FEWEST measurements."""
FEWEST = 3
"""Measurements of a slow function."""
SPENT = "the time budget was spent"
"""End of the reason of every contestant without time left."""


class DeviceBroken(RuntimeError):
    """The CUDA context is lost, as after an illegal access: only another process can go on."""


class Clock(Protocol):
    """A clock that times one call."""

    def seconds(self, function: Callable[[], object]) -> float:
        """Time of one call of `function`, from a cold cache."""


class CudaClock:
    """Device time between two events around the call, from a cold cache; `dirty` leaves written lines in it."""

    def __init__(self, device: torch.device, *, dirty: bool = False) -> None:
        self._cold = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._read = None if dirty else torch.zeros(READ_BYTES // 4, dtype=torch.int32, device=device)
        self._peak = torch.zeros((), dtype=torch.int32, device=device)

    def seconds(self, function: Callable[[], object]) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(FLUSHES):
            self._cold.zero_()
        if self._read is not None:
            torch.amax(self._read, 0, out=self._peak)
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class WallClock:
    """Host time, to try the benchmark's own logic without a GPU."""

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
    functions: Mapping[str, Callable[[], object]], clock: Clock, *, repeats: int, warmup: int = 2,
    deadline: float = math.inf, trying: Callable[[str], None] = lambda _: None,
    failure: Callable[[Exception], str] | None = None,
) -> tuple[dict[str, Times], dict[str, str]]:  # fmt: skip
    """Times per function, and the error of each that failed.

    Every round runs all functions, every other round in reverse order (ABBA), so that drift of clocks and
    temperature falls on all alike. A function that raises is left out of later rounds; `failure` puts its
    error into words. `trying` gets each name before its call. No round begins after `deadline` (a time of
    `time.monotonic()`).
    """
    measured: dict[str, list[float]] = {name: [] for name in functions}
    failed: dict[str, str] = {}
    for turn in range(warmup + repeats):
        if time.monotonic() > deadline:
            break
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            if name in failed or (len(measured[name]) >= FEWEST and sum(measured[name]) > SLOW):
                continue
            trying(name)
            try:
                seconds = clock.seconds(functions[name])
            except Exception as error:
                failed[name] = (failure or describe)(error)
                continue
            if turn >= warmup:
                measured[name].append(seconds)
    for name in functions:
        if not measured[name] and name not in failed:
            failed[name] = f"not timed: {SPENT}"
    return {n: summarize(s) for n, s in measured.items() if n not in failed}, failed


def describe(error: BaseException) -> str:
    """An error in one line, for the table of reasons."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def reason_of(error: Exception, device: torch.device) -> str:
    """`describe(error)`, if `device` still works. Raises DeviceBroken if the error broke the device."""
    if isinstance(error, DeviceBroken):
        raise error
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as lost:
            raise DeviceBroken(describe(error)) from lost
    return describe(error)
