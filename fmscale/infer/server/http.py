"""The HTTP server around the application: uvicorn, with time limits for slow clients and a clean end."""

import asyncio
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fmscale.errors import ConfigError
from fmscale.infer.server.api import Limits
from fmscale.infer.server.app import App
from fmscale.infer.server.worker import ModelWorker

CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 30
ABORT_SECONDS = 5
"""Seconds behind the grace time in which answers that were cut reach their clients."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free port. Raises ConfigError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            "The server cannot listen there",
            found=f"{host} port {port}: {error}",
            remedy="Give another --port, or an address of this machine as --host.",
        ) from error


def make_server(app: App, worker: ModelWorker, limits: Limits, grace: float) -> "Server":
    """The server of an application; `Server.run` takes its sockets."""

    class Protocol(_PatientProtocol):
        seconds = limits.body_seconds

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(grace) + ABORT_SECONDS,
    )
    return Server(config, worker, grace)


def run_server(server: "Server", listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, from the main thread. Answers then have the grace time; what is not finished is
    cut or refused, and the function returns.
    """
    # uvicorn takes the signals later, and raises them again at its end
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        server.worker.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """uvicorn's server, which also ends the worker's time at a signal."""

    def __init__(self, config: uvicorn.Config, worker: ModelWorker, grace: float) -> None:
        super().__init__(config)
        self.worker, self._grace = worker, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end; a signal handler."""
        self.worker.end_by(time.monotonic() + self._grace)
        super().handle_exit(sig, frame)


class _PatientProtocol(H11Protocol):
    """uvicorn's connection, which ends if headers do not come, or nobody reads the answer, for `seconds`."""

    seconds = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait("headers", True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait("headers", self.cycle is None or self.cycle.response_complete)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait("reader", True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait("reader", False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait("headers", False)

    def _wait(self, name: str, waits: bool) -> None:
        """Begin or end a wait for the client."""
        if waits and name not in self._timers:
            self._timers[name] = self.loop.call_later(self.seconds, self.transport.abort)
        elif not waits and name in self._timers:
            self._timers.pop(name).cancel()
