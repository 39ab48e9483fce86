"""Local writers: processes that get one unit after another.

Writers are processes because reading, decoding and the table of words hold the interpreter's lock. They start
without a fork and communicate over pipes: a caller's `__main__` never runs a second time, and the library
`tokenizers` never runs in a forked process.
"""

import queue
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from fmscale.data.ingest.apart import died, start
from fmscale.data.ingest.job import IngestJob
from fmscale.data.ingest.messages import Message, decode, encode, rebuild_error
from fmscale.data.ingest.record import decode_record
from fmscale.data.ingest.scratch import sweep
from fmscale.data.ingest.unit import UnitTask

END_SECONDS = 10.0
"""Time for a process to end after SIGTERM: it may be in the middle of a write."""


def run_processes(job: IngestJob, count: int) -> None:
    """Do the pending units in `count` processes.

    Raises the first error that a process reports, with its unit, or RankError if a process dies. Units that were
    sealed before stay, and the other processes end.
    """
    answers: queue.SimpleQueue[tuple[_Process, Message | None]] = queue.SimpleQueue()
    waiting = job.pending[::-1]
    processes: list[_Process] = []
    try:
        for _ in range(count):
            processes.append(_Process(job.task, answers))  # one by one: after a failed start the earlier processes end
        left = len(waiting)
        while left:
            process, message = answers.get()
            where = "an ingest process" if process.unit is None else job.describe(process.unit)
            if message is None:
                raise died(f"A process that ingests died while it worked on {where}", process.popen.wait())
            if "error" in message:
                raise rebuild_error(message["error"], where)
            if "done" in message:
                job.done(decode_record(message["done"].encode()))
                left -= 1
            job.advance(message.get("advance", 0))
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
        sweep(Path(job.task.scratch))


class _Process:
    """A writer: its pipes, and the unit that it works on."""

    def __init__(self, task: UnitTask, answers: "queue.SimpleQueue[tuple[_Process, Message | None]]") -> None:
        self.unit: int | None = None
        self._answers = answers
        # One process a core: threads inside a process would only take turns.
        self.popen = start("worker", {"TOKENIZERS_PARALLELISM": "false"})
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        self._send(asdict(task))

    def give(self, unit: int | None) -> None:
        """Give the writer its next unit; None if no unit is left."""
        self.unit = unit
        if unit is not None:
            self._send({"unit": unit})

    def stop(self) -> None:
        """Let the writer clean up and end."""
        self._send({"unit": None})
        self.popen.wait()

    def end(self, deadline: float) -> None:
        """Wait for the writer's end until the deadline, then kill it."""
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
