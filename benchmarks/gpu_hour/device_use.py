"""Use of the device in some steps of a run: idle time, waits of the host and copies, from torch's profiler."""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

STEPS = 3
"""Steps that are profiled."""
STEP = "step of the run"
"""Name of a step's span."""
DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
"""Categories of events on the device."""
WAITS = frozenset({"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"})
"""Calls in which the host waits for the device."""


class Profile:
    """Profiles three calls of `train_step`; `found` is empty until they have ended."""

    def __init__(self, *, on_gpu: bool, first: int) -> None:
        self._on_gpu, self._first, self._calls = on_gpu, first, 0
        self._profile: Any = None
        self.found: dict[str, Any] = {}

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, with a profile from call number `first` on, until the call behind the last profiled one begins."""

        @wraps(step)
        def profiled(*given: Any, **options: Any) -> Any:
            if self._calls == self._first:
                self._settle()
                kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
                self._profile = profile(activities=kinds)
                self._profile.start()
            elif self._calls == self._first + STEPS:
                self._settle()
                self._profile.stop()
                self.found = {"profile": device_use(_events(self._profile))}
            self._calls += 1
            with record_function(STEP):
                return step(*given, **options)

        return profiled

    def _settle(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def device_use(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures a step of a Chrome trace's events; those of the device are None without a device.

    `waits`: calls of the host that wait for the device. `pageable_copies`, `pinned_copies`: from the host to the
    device. `idle_seconds`: time without work on the device. `boundary_seconds`: the longest pause of the device between
    the middles of two steps on the host, median over the boundaries.
    """
    spans = sorted((one["ts"], one["ts"] + one["dur"]) for one in events if one.get("name") == STEP and "dur" in one)
    host = [(begin, end) for at, (begin, end) in enumerate(spans) if not at or begin >= spans[at - 1][1]]
    device = sorted((one["ts"], one["ts"] + one["dur"]) for one in events if one.get("cat") in DEVICE)
    copies = [one["name"] for one in events if one.get("cat") == "gpu_memcpy" and "HtoD" in one["name"]]
    waits = [one for one in events if one.get("cat") == "cuda_runtime" and one["name"] in WAITS]
    pauses, busy_until = [], device[0][0] if device else 0.0
    for begin, end in device:
        if begin > busy_until:
            pauses.append((busy_until, begin))
        busy_until = max(busy_until, end)
    middles = [(begin + end) / 2 for begin, end in host]
    longest = [
        max((end - begin for begin, end in pauses if begin < after and end > before), default=0.0)
        for before, after in pairwise(middles)
    ]
    n = max(1, len(host))
    return {
        "steps": len(host),
        "waits": len(waits) / n if device else None,
        "pageable_copies": sum("Pageable" in name for name in copies) / n if device else None,
        "pinned_copies": sum("Pinned" in name for name in copies) / n if device else None,
        "idle_seconds": sum(end - begin for begin, end in pauses) / n / 1e6 if device else None,
        "boundary_seconds": statistics.median(longest) / 1e6 if device and longest else None,
    }


def _events(taken: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        taken.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events
