"""The persist process: `python -m fmscale.checkpoint.persist.process DESCRIPTOR`, started by the trainer.

It receives memory and jobs as descriptors over a socket, and sends back the events of each job. It does not import
torch. It ignores stop signals, which the scheduler sends to every process of the job while the last save is under way.
It ends at once with its parent; if the parent has asked to drain, it ends after its last job.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from typing import Any

from fmscale.checkpoint.persist.job import SaveSettings, decode_job
from fmscale.checkpoint.persist.worker import Worker
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.runtime.stop import ignore_stop_signals

LARGEST_MESSAGE = 1 << 16
LOOK_SECONDS = 0.5
"""Seconds between two checks that the parent lives: a child that the trainer forked may hold the socket open."""


def main() -> None:
    """Serve until the parent closes the socket or ends."""
    ignore_stop_signals()
    logging.basicConfig(format="persist %(levelname)s: %(message)s", level=logging.WARNING)
    parent = os.getppid()
    ours = socket.socket(fileno=int(sys.argv[1]))
    draining = threading.Event()
    worker: Worker | None = None

    def end() -> None:
        if worker is not None:
            worker.left_alone()
        while draining.is_set() and worker is not None and not worker.idle:
            time.sleep(0.01)
        os._exit(0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True).start()
    sending = threading.Lock()

    def tell(event: dict[str, Any]) -> None:
        try:
            with sending:
                ours.send(json.dumps(event).encode()[:LARGEST_MESSAGE])
        except OSError:
            if not draining.is_set():
                os._exit(1)

    memories: dict[int, SharedMemory] = {}
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(ours, LARGEST_MESSAGE, 1)
        except ConnectionResetError:  # the parent was killed before it read all events
            data, descriptors = b"", []
        if not data:
            end()
        message = json.loads(data)
        if "settings" in message:
            config = CheckpointConfig(**message["settings"].pop("config"))
            worker = Worker(SaveSettings(config=config, **message["settings"]), tell)
            tell({"event": "ready"})
            continue
        assert worker is not None
        if "memory" in message:
            memories[message["memory"]] = SharedMemory(message["bytes"], descriptors[0])
        elif "forget" in message:
            memories.pop(message["forget"]).close()
        elif "submit" in message:
            job = decode_job(_content(descriptors[0]))
            worker.submit(job, None if job.refused else memories[job.memory])
        elif "copied" in message:
            worker.copied(message["copied"], message["bytes"], message["failed"])
        else:
            draining.set()
            worker.drain()


def _content(descriptor: int) -> bytes:
    """Read a whole file by its descriptor, and close the descriptor."""
    with open(descriptor, "rb") as file:
        file.seek(0)  # the trainer's write left the position at the end
        return file.read()


if __name__ == "__main__":
    main()
