"""A worker process that takes one request at a time and is replaced when it crashes, hangs or loses its GPU.

A wrong kernel can end its process or leave an unusable CUDA context. Every candidate of the tuner and every
contestant of the benchmark runs in such a process, as its kernel may be wrong.
"""

import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.kernels.report import CHECKOUT
from fmscale.errors import KernelError

PATIENCE = 120.0
"""Seconds without a line, compilation included, after which a worker counts as hanging."""
START_PATIENCE = 300.0
"""Seconds for a worker to import torch; the import takes minutes cold and over a network file system."""
END_PATIENCE = 30.0
"""Seconds for a process to end after it closed its output."""


class Workshop:
    """Sends requests to `python -m benchmarks.kernels.serve SERVICE ARGUMENT`."""

    def __init__(self, service: str, argument: str, patience: float = PATIENCE) -> None:
        self._words, self._patience = (service, argument), patience
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> int | None:
        process, self._process, self._heard = self._process, None, b""
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.kernels.serve", *self._words]
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment)
        self._process = process
        ready = self._line(process, START_PATIENCE)
        if ready is None or not ready:
            self._stop()
            raise KernelError(
                f"the worker of {self._words[1]} did not start", found=ready, remedy="Its error is above."
            )
        return process

    def _line(self, process: subprocess.Popen[bytes], patience: float) -> str | None:
        """The worker's next line; "" if the worker ended, None if no line came in time."""
        assert process.stdout is not None
        until = time.monotonic() + patience
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                if not waiting.select(max(0.0, until - time.monotonic())):
                    return None
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    return ""
                self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def ask(self, request: Mapping[str, Any], *, deadline: float = math.inf) -> dict[str, Any]:
        """The worker's answer; {"ok": False, "reason", "trying"} after a crash or silence.

        "trying" is the worker's last `trying` name, None without such a line. `deadline` is a time of
        `time.monotonic()` at which the wait for a line ends.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has died: the end of its output tells below
            process.stdin.write(json.dumps(request).encode() + b"\n")
        trying: str | None = None
        while True:
            patience = min(self._patience, max(0.0, deadline - time.monotonic()))
            line = self._line(process, patience)
            if line is None:
                self._stop()
                return {"ok": False, "reason": f"no answer within {patience:.0f} s", "trying": trying}
            if not line:
                process.wait(END_PATIENCE)
                return {"ok": False, "reason": f"crashed: exit status {self._stop()}", "trying": trying}
            message: dict[str, Any] = json.loads(line)
            if "ok" not in message:
                trying = message["trying"]
                continue
            if message["broken"]:
                self._stop()
            return {"trying": trying} | message
