"""The process in which configurations are tried: one that crashes takes only this process with it.

Says "ready" once, then reads one request a line on stdin and answers one JSON line each: {"problem":
index, "kernel": name, "config": {...}, "configs": {...}} asks for a configuration of one kernel with
`configs` in force for the others; with kernel null, for the times of all backends but those in
"without": [...].
"""

import contextlib
import importlib
import json
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import torch
from fmscale.kernels.bench.problems import Problem, Runs
from fmscale.kernels.bench.timing import CudaClock, WallClock, describe, interleave
from fmscale.kernels.bench.verdict import worse
from fmscale.kernels.dispatch import forced
from torch import Tensor

REPEATS = 15


class Bench:
    """Holds one problem's inputs and golden result at a time."""

    def __init__(self, problems: list[Problem], device: torch.device) -> None:
        self._problems, self._device, self._index = problems, device, -1
        self._clock = CudaClock(device) if device.type == "cuda" else WallClock()

    def _load(self, index: int) -> None:
        if index == self._index:
            return
        self._runs: Runs = self._problems[index].make(self._device)
        self._golden: list[Tensor] = self._runs[1]()
        self._eager: list[Tensor] = self._runs[0]["eager"]()
        self._index = index

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Check, then time, what the request asks for."""
        self._load(request["problem"])
        op = self._problems[request["problem"]].op
        settings = dict(request["configs"])
        if request["kernel"] is not None:
            settings[request["kernel"]] = request["config"]
        with contextlib.ExitStack() as stack:
            for kernel, chosen in settings.items():
                stack.enter_context(forced(op, kernel, chosen))
            return self._one() if request["kernel"] is not None else self._all(request["without"])

    def _one(self) -> dict[str, Any]:
        run = self._runs[0]["triton"]
        why = worse(run(), self._eager, self._golden)
        if why is not None:
            return {"ok": False, "reason": why}
        seconds = [self._clock.seconds(run) for _ in range(REPEATS)]
        return {"ok": True, "milliseconds": statistics.median(seconds) * 1e3}

    def _all(self, without: list[str]) -> dict[str, Any]:
        right, reasons = {}, {}
        for name, run in self._runs[0].items():
            if name in without:
                continue
            try:
                why = worse(run(), self._eager, self._golden)
            except Exception as error:
                why = describe(error)
            if why is None:
                right[name] = run
            else:
                reasons[name] = why
        times, failed = interleave(right, self._clock, repeats=REPEATS)
        milliseconds = {name: t.median * 1e3 for name, t in times.items()}
        return {"ok": True, "milliseconds": milliseconds, "reasons": reasons | failed}


def main() -> int:
    """Serve requests until stdin ends; the argument is the module whose `problems()` are meant."""
    module = importlib.import_module(sys.argv[1])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(module.problems(), device)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            reply = bench.answer(json.loads(line))
        except Exception as error:  # a launch that Triton or the driver refuses; a crash ends the process
            reply = {"ok": False, "reason": describe(error)}
        print(json.dumps(reply), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
