"""Local writers: processes that are given one unit after another.

Processes and not threads, as reading, decoding and the table of words hold the interpreter's lock. They are
started anew (not forked) and talk over pipes, so that a caller's `__main__` is never run again and the
library `tokenizers` never meets a fork.
"""

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from fmscale.data.ingest.apart import start
from fmscale.data.ingest.messages import Message, decode, encode, rebuild_error
from fmscale.data.ingest.record import UnitRecord, decode_record
from fmscale.data.ingest.scratch import sweep
from fmscale.data.ingest.unit import Advance, UnitTask, open_writer
from fmscale.errors import RankError

END_SECONDS = 10.0
"""A process that was asked to end is in the middle of a write at most."""

Done = Callable[[UnitRecord], object]
"""Told each unit's record."""


def run_here(assignment: UnitTask, units: Sequence[int], done: Done, advance: Advance) -> None:
    """Do the units in this process, with the threads of the library `tokenizers`."""
    with open_writer(assignment) as writer:
        for unit in units:
            done(writer.run(unit, advance))


def run_processes(
    assignment: UnitTask,
    units: Sequence[int],
    count: int,
    describe: Callable[[int], str],
    done: Done,
    advance: Advance,
) -> None:
    """Do the units in `count` processes.

    Raises the first error that one of them reports, naming its unit, or RankError if one dies. Units that are
    sealed by then stay so; the other processes are ended.
    """
    answers: queue.SimpleQueue[tuple[_Process, Message | None]] = queue.SimpleQueue()
    waiting = list(reversed(units))
    processes: list[_Process] = []
    try:
        processes = [_Process(assignment, answers) for _ in range(count)]
        left = len(units)
        while left:
            process, message = answers.get()
            where = describe(process.unit) if process.unit is not None else "an ingest process"
            if message is None:
                raise _died(process, where)
            if "error" in message:
                raise rebuild_error(message["error"], where)
            if "done" in message:
                done(decode_record(message["done"].encode()))
                left -= 1
            advance(message.get("advance", 0))
            if "done" in message or "ready" in message:
                process.give(waiting.pop() if waiting else None)
        for process in processes:
            process.stop()
    finally:
        for process in processes:
            process.ask_to_end()
        deadline = time.monotonic() + END_SECONDS
        for process in processes:
            process.end(deadline)
        sweep(Path(assignment.scratch))


class _Process:
    """One writer: its pipes, and the unit that it works on."""

    def __init__(self, assignment: UnitTask, answers: "queue.SimpleQueue[tuple[_Process, Message | None]]") -> None:
        self.unit: int | None = None
        self._answers = answers
        # One process a core: threads inside each would only take turns.
        self._process = start("worker", {"TOKENIZERS_PARALLELISM": "false"})
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        self._send(asdict(assignment))

    def give(self, unit: int | None) -> None:
        """Let it do this unit next; None when there is none left."""
        self.unit = unit
        if unit is not None:
            self._send({"unit": unit})

    def stop(self) -> None:
        """Let it clean up and end."""
        self._send({"unit": None})
        self._process.wait()

    def ask_to_end(self) -> None:
        """Let it take away what it has half written, and end."""
        self._process.terminate()

    def end(self, deadline: float) -> None:
        """Wait for its end until then, and end it, whatever it does."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "both were asked for"
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    def returncode(self) -> int:
        """Its exit status, once its output has ended."""
        return self._process.wait()

    def _send(self, message: Message) -> None:
        assert self._process.stdin is not None, "it was asked for"
        try:
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it died: its output ends too, and that is what is reported

    def _receive(self) -> None:
        assert self._process.stdout is not None, "it was asked for"
        for line in self._process.stdout:
            self._answers.put((self, decode(line)))
        self._answers.put((self, None))


def _died(process: _Process, where: str) -> RankError:
    status = process.returncode()
    return RankError(
        f"A process that ingests died while it worked on {where}",
        found=f"signal {-status}" if status < 0 else f"exit status {status}",
        remedy="Signal 9 is often a lack of memory: use fewer --workers. Run again to go on.",
    )
