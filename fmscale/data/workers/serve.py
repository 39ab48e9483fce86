"""A worker as a process, started by `pool`: its module calls `serve`.

It reads lines of JSON from standard input (first the task, then unit numbers) and answers on standard output. On
SIGTERM it cleans up and ends. It ends at once at the end of its input, because its parent has died.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO

from fmscale.data.workers.messages import Message, Reporter, decode, describe_error, encode

REPORT_SECONDS = 0.2
"""Least time between two messages of progress."""

Run = Callable[[int, Callable[[int], object]], str]
"""Does a unit, reports its progress, and returns its outcome."""


def serve(open_worker: Callable[[Message], AbstractContextManager[Run]]) -> None:
    """Do units of the task until none is left, then end the process; `open_worker` makes ready for the task."""
    try:
        _serve(open_worker)
    finally:
        # The thread that reads would delay the interpreter's end.
        os._exit(0)


def _serve(open_worker: Callable[[Message], AbstractContextManager[Run]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets SIGINT too, and decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    incoming: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, incoming), daemon=True).start()
    try:
        with open_worker(incoming.get()) as run:
            answers.write(encode({"ready": True}))
            reporter = Reporter(lambda message: answers.write(encode(message)), REPORT_SECONDS)
            for message in iter(incoming.get, {"unit": None}):
                outcome = run(message["unit"], reporter.advance)
                answers.write(encode({"done": outcome, "advance": reporter.take()}))
    except Exception as error:
        answers.write(encode({"error": describe_error(error)}))


def _receive(file: BinaryIO, incoming: "queue.SimpleQueue[Message]") -> None:
    for line in file:
        incoming.put(decode(line))
    os._exit(1)
