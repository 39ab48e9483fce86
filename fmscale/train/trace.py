"""Spans of some steps on a rank, as a file that ui.perfetto.dev and chrome://tracing show.

While a step is traced, the methods below have a clock around them; before and after they are as they were, so that a
run without `train.trace` pays a comparison a step. All times are of one clock, the machine's in microseconds, so that
files of several ranks can be joined: their `traceEvents` one after another.
"""

import gzip
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from fmscale.checkpoint.saver import SaveReport
from fmscale.checkpoint.snapshot.snapshot import SnapshotSlot
from fmscale.objectives.protocol import Inputs
from fmscale.store.tiers.fetch import Fetcher
from fmscale.train.staging import Staging

logger = logging.getLogger(__name__)

LANES = ("compute", "data", "transfer", "store", "snapshot", "persist")
"""Lanes of a file in their order; a lane has a track for each of its threads."""
WAITING = frozenset({"compute", "transfer"})
"""Lanes whose spans end when the device has done the work, and not when the host has queued it."""
MOST_SPANS = 500_000
"""Spans that are kept, 100 bytes each; later spans are counted."""

Span = tuple[str, str, int, str, int, int, str]
"""Lane, name, thread's id and name, begin and end in nanoseconds; an object's key or a device, or an empty text."""


class StepTrace:
    """Takes spans of the work in some steps of this rank."""

    def __init__(self, folder: Path, rank: int, steps: range, *, device: str) -> None:
        self.path = folder / f"trace-rank{rank:05d}.json.gz"
        self._rank = rank
        self._steps = steps
        self._settle: Callable[[], None] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self._clock = time.time_ns() - time.perf_counter_ns()
        self._spans: list[Span] = []
        self._left_out = 0
        self._watched: list[tuple[type, str, str, str]] = []
        self._undo: list[tuple[type, str, Any]] = []
        self._reports: Callable[[], Sequence[SaveReport]] = tuple
        self._step: tuple[int, int] | None = None

    def watch(self, engine: type, loader: type, backend: type, reports: Callable[[], Sequence[SaveReport]]) -> None:
        """Set the classes whose methods are timed, and the source of reports of saves."""
        self._reports = reports
        self._watched = [
            *((engine, name, "compute", name) for name in ("before", "forward", "backward")),
            (engine, "step", "compute", "optimizer"),
            (loader, "__next__", "data", "next forward"),
            (Inputs, "to", "transfer", "to the device"),
            (Staging, "copy", "transfer", "to the device"),
            *((Fetcher, name, "store", f"{name} chunks") for name in ("read", "advise")),
            *((backend, name, "store", name) for name in ("get", "read", "read_into")),
            (SnapshotSlot, "take", "snapshot", "begin the copy"),
            (SnapshotSlot, "finish", "snapshot", "copy"),
            (SnapshotSlot, "fence", "snapshot", "fence"),
        ]

    def begin(self, step: int) -> None:
        """Note that a step begins, and so that the step before has ended."""
        self._end_step()
        if step in self._steps:
            if not self._undo:
                self._wrap()
            self._step = step, time.perf_counter_ns()
        elif self._undo:
            self._unwrap()
            self._write()

    def close(self) -> None:
        """End a step that is still open, and write the file with the saves that became durable since."""
        self._end_step()
        self._unwrap()
        if self._spans:
            self._write()
        elif not self._rank:
            steps = f"{self._steps[0]}-{self._steps[-1]}"
            logger.warning("train.trace: there is no trace, as this job took none of the steps %s", steps)

    def _end_step(self) -> None:
        if self._step is not None:
            number, began = self._step
            self._step = None
            self._settle()
            self._add("compute", f"step {number}", began, "")

    def _add(self, lane: str, name: str, began: int, of: str) -> None:
        if len(self._spans) >= MOST_SPANS:
            self._left_out += 1
            return
        thread = threading.current_thread()
        self._spans.append((lane, name, threading.get_ident(), thread.name, began, time.perf_counter_ns(), of))

    def _wrap(self) -> None:
        for owner, method, lane, name in self._watched:
            self._undo.append((owner, method, vars(owner).get(method)))
            setattr(owner, method, self._timed(getattr(owner, method), lane, name))

    def _unwrap(self) -> None:
        while self._undo:
            owner, method, own = self._undo.pop()
            if own is None:  # the method is inherited
                delattr(owner, method)
            else:
                setattr(owner, method, own)

    def _timed(self, method: Callable[..., Any], lane: str, name: str) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **more: Any) -> Any:
            began = time.perf_counter_ns()
            try:
                return method(*args, **more)
            finally:
                if lane in WAITING:
                    self._settle()
                self._add(lane, name, began, args[1] if len(args) > 1 and isinstance(args[1], str) else "")

        return timed

    def _write(self) -> None:
        """Write the file, or log that it cannot be written: a run does not end for it."""
        beside = self.path.with_name(f".{self.path.name}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # of a rank on another machine
            beside.write_bytes(gzip.compress(json.dumps(self._content()).encode()))
            beside.replace(self.path)
        except OSError as error:
            logger.warning("%s is not written: %s", self.path, error.strerror)

    def _content(self) -> dict[str, Any]:
        spans = [*self._spans, *self._persisted()]
        tracks: dict[tuple[str, int], int] = {}
        names: dict[int, str] = {}
        events = []
        for lane, name, thread, thread_name, began, ended, of in sorted(spans, key=lambda span: (span[4], -span[5])):
            number = sum(other == lane for other, _ in tracks)
            track = tracks.setdefault((lane, thread), 100 * LANES.index(lane) + number)
            names.setdefault(track, lane if thread_name == "MainThread" else f"{lane}: {thread_name}")
            first, last = ((at + self._clock) // 1000 for at in (began, ended))
            at = {"ts": first, "dur": last - first, "pid": self._rank, "tid": track}
            events.append({"name": name, "cat": lane, "ph": "X", **at, "args": {"of": of} if of else {}})
        about = [{"name": "process_name", "ph": "M", "pid": self._rank, "args": {"name": f"rank {self._rank}"}}]
        for track, name in sorted(names.items()):
            place = {"ph": "M", "pid": self._rank, "tid": track}
            about.append({"name": "thread_name", **place, "args": {"name": name}})
            about.append({"name": "thread_sort_index", **place, "args": {"sort_index": track}})
        facts = {"format_version": 1, "rank": self._rank, "spans_left_out": self._left_out}
        return {"traceEvents": [*about, *events], "displayTimeUnit": "ms", "otherData": facts}

    def _persisted(self) -> list[Span]:
        """Spans of saves that the persist process has made durable; saves that overlap are on tracks of their own."""
        spans: list[Span] = []
        free: list[int] = []
        for report in sorted(self._reports(), key=lambda report: report.time - report.durable_seconds):
            if report.step in self._steps and report.state == "acknowledged":
                end = int(report.time * 1e9) - self._clock
                began = end - int(report.durable_seconds * 1e9)
                sealed = began + int(report.sealed_seconds * 1e9)
                number = next((n for n, ended in enumerate(free) if ended <= began), len(free))
                free[number : number + 1] = [end]
                track = number, f"save {number + 1} at a time"
                spans += [
                    ("persist", f"save of step {report.step}", *track, began, end, ""),
                    ("persist", "write and seal", *track, began, sealed, ""),
                    ("persist", "commit", *track, sealed, end, ""),
                ]
        return spans
