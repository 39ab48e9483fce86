"""A writer as a process: `python -m fmscale.data.ingest.worker`, started by `workers`.

It reads lines of JSON from standard input (first the task, then unit numbers) and answers on standard output. On
SIGTERM it deletes unfinished segments and ends. It ends at once at the end of its input, because its parent has died.
"""

import os
import queue
import signal
import sys
import threading
from typing import BinaryIO

from fmscale.data.ingest.messages import Message, Reporter, decode, describe_error, encode
from fmscale.data.ingest.unit import UnitTask, open_writer

REPORT_SECONDS = 0.2
"""Least time between two messages of progress."""


def main() -> None:
    """Work until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets SIGINT too, and decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    incoming: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, incoming), daemon=True).start()
    try:
        task = UnitTask(**incoming.get())
        with open_writer(task) as writer:
            answers.write(encode({"ready": True}))
            reporter = Reporter(lambda message: answers.write(encode(message)), REPORT_SECONDS)
            for message in iter(incoming.get, {"unit": None}):
                record = writer.run(message["unit"], reporter.advance)
                answers.write(encode({"done": record.encode().decode(), "advance": reporter.take()}))
    except Exception as error:
        answers.write(encode({"error": describe_error(error)}))


def _receive(file: BinaryIO, incoming: "queue.SimpleQueue[Message]") -> None:
    for line in file:
        incoming.put(decode(line))
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    finally:
        # The thread that reads would delay the interpreter's end.
        os._exit(0)
