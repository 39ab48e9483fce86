"""The tuner's service: it checks, then times, an op under a setting of launch configurations.

Requests: {"problem": index} makes the problem; with "configs": {kernel: config}, the triton backend is
checked and timed under them; with "without": [backend] too, all other backends are checked and timed.
"""

import contextlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fmscale.kernels.dispatch import forced

from benchmarks.kernels.problems import Problem
from benchmarks.kernels.serve import resolve
from benchmarks.kernels.timing import Clock, CudaClock, WallClock, interleave, reason_of
from benchmarks.kernels.verdict import worse

REPEATS = 15
Trying = Callable[[str], None]


class Bench:
    """Holds one problem's inputs and golden result at a time."""

    def __init__(self, problems: list[Problem], device: torch.device) -> None:
        self._problems, self._device, self._index = problems, device, -1
        self._clock: Clock = CudaClock(device) if device.type == "cuda" else WallClock()

    def _load(self, index: int) -> None:
        if index == self._index:
            return
        self._index = -1
        self._contestants, golden = self._problems[index].make(self._device)
        self._golden = golden()
        self._eager = self._contestants["eager"].numbers()
        self._index = index

    def answer(self, request: Mapping[str, Any], trying: Trying) -> dict[str, Any]:
        """Check, then time, the backends of the request."""
        self._load(request["problem"])
        if "configs" not in request:
            return {}
        op = self._problems[request["problem"]].op
        with contextlib.ExitStack() as stack:
            for kernel, chosen in request["configs"].items():
                stack.enter_context(forced(op, kernel, chosen))
            return self._all(request["without"], trying) if "without" in request else self._one()

    def _one(self) -> dict[str, Any]:
        triton = self._contestants["triton"]
        try:
            why = worse(triton.numbers(), self._eager, self._golden)
            if why is not None:
                return {"ok": False, "reason": why}
            seconds = [self._clock.seconds(triton.run) for _ in range(REPEATS)]
        except Exception as error:
            return {"ok": False, "reason": reason_of(error, self._device)}
        return {"milliseconds": statistics.median(seconds) * 1e3}

    def _all(self, without: list[str], trying: Trying) -> dict[str, Any]:
        right, reasons = {}, {}

        def failure(error: Exception) -> str:
            return reason_of(error, self._device)

        for name, contestant in self._contestants.items():
            if name in without:
                continue
            trying(name)
            try:
                why = worse(contestant.numbers(), self._eager, self._golden)
            except Exception as error:
                why = failure(error)
            if why is None:
                right[name] = contestant.run
            else:
                reasons[name] = why
        times, failed = interleave(right, self._clock, repeats=REPEATS, trying=trying, failure=failure)
        milliseconds = {name: t.median * 1e3 for name, t in times.items()}
        return {"milliseconds": milliseconds, "reasons": reasons | failed}


def service(problems: str) -> Callable[[Mapping[str, Any], Trying], dict[str, Any]]:
    """Answers requests about the problems that "module:function" returns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Bench(resolve(problems), device).answer
