"""Processes that get one unit of work after another.

Workers are processes because reading, decoding and the table of words hold the interpreter's lock: two threads
tokenized 1.05 times as fast as a single thread. They start without a fork and communicate over pipes: a caller's
`__main__` never runs a second time, and the library `tokenizers` never runs in a forked process.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import fmscale
from fmscale.data.workers.messages import Message, decode, encode, rebuild_error
from fmscale.data.workers.serve import Run
from fmscale.errors import ConfigError, RankError

END_SECONDS = 10.0
"""Time for a process to end after SIGTERM: it may be in the middle of a write."""

Progress = Callable[[int, int], object]
"""Receives the records done and the records of all."""


@dataclass(frozen=True, kw_only=True)
class UnitWork:
    """Units of a job, and the module that does them as a process."""

    name: str
    """Name of the job's kind, for errors."""
    module: str
    """Module whose `__main__` calls `serve`."""
    task: Message
    """The job, as its workers need it."""
    units: Sequence[int]
    """Units to do, in order."""
    describe: Callable[[int], str]
    """Names a unit, for errors."""
    advance: Callable[[int], object] = lambda records: None
    """Receives the progress of units."""
    done: Callable[[str], object] = lambda outcome: None
    """Receives the outcome of each unit."""


def run_units(work: UnitWork, count: int) -> None:
    """Do the units in `count` processes.

    Raises the first error that a process reports, with its unit, or RankError if a process dies. Units that were
    done before stay, and the other processes end.
    """
    answers: queue.SimpleQueue[tuple[_Process, Message | None]] = queue.SimpleQueue()
    waiting = list(reversed(work.units))
    processes: list[_Process] = []
    try:
        for _ in range(count):
            processes.append(_Process(work, answers))  # one by one: after a failed start the earlier processes end
        left = len(waiting)
        while left:
            process, message = answers.get()
            where = f"the start of {work.name}" if process.unit is None else work.describe(process.unit)
            if message is None:
                raise died(f"A process of {work.name} died while it worked on {where}", process.popen.wait())
            if "error" in message:
                raise rebuild_error(message["error"], where)
            if "done" in message:
                work.done(message["done"])
                left -= 1
            work.advance(message.get("advance", 0))
            if "done" in message or "ready" in message:
                process.give(waiting.pop() if waiting else None)
        for process in processes:
            process.stop()
    finally:
        for process in processes:
            process.popen.terminate()
        deadline = time.monotonic() + END_SECONDS
        for process in processes:
            process.end(deadline)


def share_units(work: UnitWork, most: int, run: Run, *, total: int, done: int, progress: Progress) -> None:
    """Do the units in processes, `most` or fewer, or a single one in this process by `run`. `progress` receives the
    records done, `done` before the first unit, and the `total`.
    """

    def advance(records: int) -> None:
        nonlocal done
        done += records
        progress(done, total)

    advance(0)
    if (count := min(most, len(work.units))) > 1:
        run_units(replace(work, advance=advance), count)
    else:
        for unit in work.units:
            run(unit, advance)


def most_workers(workers: int | None, urls: Iterable[str], name: str) -> int:
    """Most processes for a job on these stores and inputs: `workers`, by default one for each core. Raises ConfigError,
    with the workers' `name`, below 1 and for several processes that cannot all see the job's memory://.
    """
    private = any(url.startswith("memory://") for url in urls)
    if workers is not None and (workers < 1 or (private and workers > 1)):
        raise ConfigError(
            f"This job cannot have that many {name}",
            found=workers,
            remedy="Use 1 or more; memory:// is seen by one process only.",
        )
    return 1 if private else workers or len(os.sched_getaffinity(0))


def died(cause: str, status: int) -> RankError:
    """The error for a process that ended by a signal or with an unexpected status."""
    return RankError(
        cause,
        found=f"signal {-status}" if status < 0 else f"exit status {status}",
        remedy="Signal 9 is often a lack of memory: use fewer --workers. Run again to go on.",
    )


def start(module: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A module as a process, with pipes to its standard input and output."""
    package = str(Path(fmscale.__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
    )


class _Process:
    """A worker: its pipes, and the unit that it works on."""

    def __init__(self, work: UnitWork, answers: "queue.SimpleQueue[tuple[_Process, Message | None]]") -> None:
        self.unit: int | None = None
        self._answers = answers
        # One process a core: threads inside a process would only take turns.
        self.popen = start(work.module, {"TOKENIZERS_PARALLELISM": "false"})
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        self._send(work.task)

    def give(self, unit: int | None) -> None:
        """Give the worker its next unit; None if no unit is left."""
        self.unit = unit
        if unit is not None:
            self._send({"unit": unit})

    def stop(self) -> None:
        """Let the worker clean up and end."""
        self._send({"unit": None})
        self.popen.wait()

    def end(self, deadline: float) -> None:
        """Wait for the worker's end until the deadline, then kill it."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(max(0.0, deadline - time.monotonic()))
        self.popen.kill()
        self._thread.join()
        with suppress(BrokenPipeError), self.popen:  # `with` closes the pipes
            self.popen.wait()

    def _send(self, message: Message) -> None:
        assert self.popen.stdin is not None, "it was asked for"
        with suppress(BrokenPipeError):  # a dead process is reported by the end of its output
            self.popen.stdin.write(encode(message))
            self.popen.stdin.flush()

    def _receive(self) -> None:
        assert self.popen.stdout is not None, "it was asked for"
        for line in self.popen.stdout:
            self._answers.put((self, decode(line)))
        self._answers.put((self, None))
