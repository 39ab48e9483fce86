"""The trainer's end of the persist process: starts it, gives it jobs, and starts it again when it dies."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fmscale
from fmscale.checkpoint.persist.job import LAST_EVENTS, SaveJob, SaveSettings, Tell, encode_job
from fmscale.checkpoint.persist.process import LARGEST_MESSAGE
from fmscale.checkpoint.snapshot.memory import SharedMemory

logger = logging.getLogger(__name__)

PACKAGES = str(Path(fmscale.__file__).parent.parent)
"""Folder that this fmscale is imported from."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 30.0
"""Seconds before a dead process is replaced; doubled each time that a new process dies before it is ready."""
LONGEST_REASON = 1000
"""Most characters of a reason that are passed on."""


@dataclass(kw_only=True)
class _OpenJob:
    """A job that has not ended."""

    job: SaveJob
    memory: SharedMemory | None
    copied: dict[str, Any] | None = None
    """The last message about the job's copy."""


class ProcessWriter:
    """A worker in a process of its own. After the process dies, a new process gets the open jobs."""

    def __init__(self, settings: SaveSettings, tell: Tell) -> None:
        self._settings = settings
        self._tell = tell
        self._lock = threading.Lock()
        self._jobs: dict[int, _OpenJob] = {}
        self._closing = False
        self._draining = False
        self._socket, self._process, self._sent = self._start()
        self._thread = threading.Thread(target=self._listen, name="persist-events", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the current persist process."""
        return self._process.pid

    def submit(self, job: SaveJob, memory: SharedMemory | None) -> None:
        """Do as Worker.submit."""
        with self._lock:
            self._jobs[job.number] = _OpenJob(job=job, memory=memory)
            self._send_job(job, memory)

    def copied(self, number: int, bytes: int, failed: str = "") -> None:
        """Do as Worker.copied."""
        message = {"copied": number, "bytes": bytes, "failed": failed[:LONGEST_REASON]}
        with self._lock:
            if number in self._jobs:
                self._jobs[number].copied = message
            self._send(message)

    def drain(self) -> None:
        """Do as Worker.drain."""
        with self._lock:
            self._draining = True
            self._send({"drain": True})

    def close(self) -> None:
        """Do as Worker.close."""
        with self._lock:
            self._closing = True
            unfinished = self._draining and bool(self._jobs)
            if not unfinished:
                self._process.kill()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if not unfinished:
            self._thread.join()
            self._socket.close()

    def _start(self) -> tuple[socket.socket, "subprocess.Popen[bytes]", dict[int, SharedMemory]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -P: a file in the current folder could have a module's name. PYTHONPATH names this fmscale instead.
            path = os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH"))))
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fmscale.checkpoint.persist.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            )
        ours.send(json.dumps({"settings": asdict(self._settings)}).encode())
        return ours, process, {}

    def _send_job(self, job: SaveJob, memory: SharedMemory | None) -> None:
        for number, known in list(self._sent.items()):
            if known.closed:
                del self._sent[number]
                self._send({"forget": number})
        if memory is not None and memory.number not in self._sent:
            self._sent[memory.number] = memory
            self._send({"memory": memory.number, "bytes": memory.size}, memory.descriptor)
        with open(os.memfd_create("fmscale-job"), "wb") as file:
            file.write(encode_job(job))
            file.flush()
            self._send({"submit": job.number}, file.fileno())

    def _send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        descriptors = [] if descriptor is None else [descriptor]
        # If the process has died, _listen notices it too and sends the open jobs to the next process.
        with suppress(OSError):
            socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                data = self._socket.recv(LARGEST_MESSAGE)
            except OSError:
                data = b""
            if data:
                event = json.loads(data)
                if event["event"] == "ready":
                    pause = FIRST_PAUSE
                    continue
                with self._lock:
                    if event["event"] in LAST_EVENTS:
                        self._jobs.pop(event["job"], None)
                    elif event["event"] == "sealed" and (open_job := self._jobs.get(event["job"])):
                        open_job.job = replace(open_job.job, sealed=True)
                self._tell(event)
                continue
            status = self._process.wait()
            if self._closing:
                return
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self._restart(status)

    def _restart(self, status: int) -> None:
        with self._lock:
            if self._closing:
                return
            logger.warning("the persist process ended with status %d; starting another", status)
            self._socket.close()
            self._socket, self._process, self._sent = self._start()
            given_up, again = [], []
            for number, open_job in list(self._jobs.items()):
                if open_job.job.attempt >= self._settings.config.retries:
                    del self._jobs[number]
                    given_up.append(number)
                    continue
                open_job.job = replace(open_job.job, attempt=open_job.job.attempt + 1)
                again.append(number)
                # Sent before any other message, so that `copied` never names a job that the process does not know.
                self._send_job(open_job.job, open_job.memory)
                if open_job.copied is not None:
                    self._send(open_job.copied)
        reason = f"the persist process ended with status {status}"
        for number in given_up:
            self._tell({"job": number, "event": "failed", "reason": reason, "lost": False})
        for number in again:
            self._tell({"job": number, "event": "retrying", "reason": reason})
        if self._draining:
            self.drain()
