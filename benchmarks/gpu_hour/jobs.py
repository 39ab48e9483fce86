"""Processes of a step: several at once, each within its time, each ended with its children."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_hour.emit import parse
from benchmarks.harness import ROOT

TAIL_LINES = 30
"""Last lines of a failed job in its record."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process."""

    name: str
    """Name in its records."""
    command: Sequence[str]
    """Command, run in the checkout."""
    seconds: float
    """Seconds after which it is killed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside the driver's own."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """End of a job."""

    job: str
    """Its name."""
    ok: bool
    """True if it exited with 0 within its time."""
    seconds: float
    """Duration."""
    reason: str = ""
    """Reason of a failure: exit status or time-out, and its last lines."""


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    deadline: float,
    record: Callable[[str, dict[str, Any]], None],
    say: Callable[[str], None],
    ended: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run all jobs that start before `deadline` (of time.monotonic); their outcomes, in the order of their end.

    `record` gets (job, record) and `say` a line as they are printed. An exception, such as that of a signal, first
    kills running jobs.
    """
    waiting, outcomes = deque(jobs), []
    running: dict[str, _Running] = {}
    events: queue.Queue[str] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < at_once and time.monotonic() < deadline:
                job = waiting.popleft()
                running[job.name] = _Running(job, deadline, record, say, events)
            if not running:
                break
            left = min(one.ends for one in running.values()) - time.monotonic()
            try:
                name = events.get(timeout=max(0.01, left))
            except queue.Empty:
                name = min(running, key=lambda one: running[one].ends)
            if name not in running:  # it ended while it was being killed
                continue
            outcome = running.pop(name).end()
            outcomes.append(outcome)
            ended(outcome)
    finally:
        for one in running.values():
            one.end()
    for job in waiting:
        outcomes.append(Outcome(job=job.name, ok=False, seconds=0.0, reason="not begun: no time was left"))
        ended(outcomes[-1])
    return outcomes


class _Running:
    """A running job, and the thread that reads its output."""

    def __init__(
        self,
        job: Job,
        deadline: float,
        record: Callable[[str, dict[str, Any]], None],
        say: Callable[[str], None],
        events: "queue.Queue[str]",
    ) -> None:
        self._job, self._record, self._say, self._events = job, record, say, events
        self._began = time.monotonic()
        self.ends = min(deadline, self._began + job.seconds)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process = subprocess.Popen(
            job.command,
            cwd=ROOT,
            env={**os.environ, **job.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._watcher = threading.Thread(target=self._watch, args=(events,), daemon=True)
        self._reader.start()
        self._watcher.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = parse(line)
            if found is not None:
                self._record(self._job.name, found)
            elif line.strip():
                self._tail.append(line.rstrip()[:500])
                self._say(f"[{self._job.name}] {line}")

    def _watch(self, events: "queue.Queue[str]") -> None:
        self._process.wait()
        self._kill()  # its remaining children hold the pipe and the GPU
        self._reader.join()
        events.put(self._job.name)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> Outcome:
        """Its outcome; a process that still runs is killed with its children."""
        late = self._process.poll() is None
        if late:
            self._kill()
        self._watcher.join(timeout=10)
        status = self._process.wait()
        seconds = time.monotonic() - self._began
        ok = status == 0 and not late
        why = f"no end within {seconds:.0f} s" if late else _status(status)
        reason = "" if ok else "\n".join([why, *self._tail])
        return Outcome(job=self._job.name, ok=ok, seconds=round(seconds, 3), reason=reason)


def _status(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
