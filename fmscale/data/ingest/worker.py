"""A writer as a process of its own: `python -m fmscale.data.ingest.worker`, started by `workers`.

Reads lines of JSON from standard input (first the assignment, then unit numbers) and answers on standard
output. SIGTERM lets it take away what is half written; the end of its input, which is also the death of its parent,
ends it at once.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from fmscale.data.ingest.messages import Message, decode, describe_error, encode
from fmscale.data.ingest.unit import UnitTask, open_writer

REPORT_SECONDS = 0.2
"""Progress is told at most this often."""


def main() -> None:
    """Work until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    incoming: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, incoming), daemon=True).start()
    try:
        assignment = UnitTask(**incoming.get())
        with open_writer(assignment) as writer:
            answers.write(encode({"ready": True}))
            reporter = _Reporter(answers)
            for unit in _units(incoming):
                record = writer.run(unit, reporter.advance)
                answers.write(encode({"done": record.encode().decode(), "advance": reporter.take()}))
    except Exception as error:
        answers.write(encode({"error": describe_error(error)}))


def _units(incoming: "queue.SimpleQueue[Message]") -> Iterator[int]:
    while (message := incoming.get()).get("unit") is not None:
        yield message["unit"]


def _receive(file: BinaryIO, incoming: "queue.SimpleQueue[Message]") -> None:
    for line in file:
        incoming.put(decode(line))
    os._exit(1)


class _Reporter:
    """Gathers progress so that small files do not flood the pipe."""

    def __init__(self, answers: "BinaryIO") -> None:
        self._answers = answers
        self._bytes = 0
        self._told = time.monotonic()

    def advance(self, size: int) -> None:
        self._bytes += size
        if time.monotonic() - self._told >= REPORT_SECONDS:
            self._answers.write(encode({"advance": self.take()}))

    def take(self) -> int:
        """What was not told yet."""
        size, self._bytes, self._told = self._bytes, 0, time.monotonic()
        return size


if __name__ == "__main__":
    try:
        main()
    finally:
        # The thread that reads would hold up the interpreter's own end.
        os._exit(0)
