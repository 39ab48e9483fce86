"""An HTTP proxy in front of a real server that delays, refuses, stalls, cuts and loses on request.

    with FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.set_latency(p50=0.010, p99=0.080)
        proxy.inject("503", seconds=30)                      # every request for 30 s
        proxy.inject("reset", count=2, method="GET", after_bytes=1000)
        url = server.url(bucket, endpoint=proxy.endpoint)
        proxy.counters()["503"]

It runs in its own process, so that a benchmark does not share its interpreter. It forwards the Host header unchanged,
so signatures for the proxy's address stay valid at the server.
"""

import asyncio
import math
import multiprocessing
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

KINDS = {
    "503": "answers 503 without asking the server",
    "409": "answers 409 without asking the server, as S3 does when creates collide",
    "503-after": "the server does it, the client gets 503",
    "stall": "takes the request, answers nothing for `stall` seconds and closes; the server never sees it",
    "stall-body": "sends `after_bytes` of the answer's body, then nothing for `stall` seconds",
    "reset": "resets the connection after `after_bytes` of the answer's body",
    "lose": "the server does it, the connection is reset before its answer",
}
REFUSALS = {
    "409": ("409 Conflict", "ConditionalRequestConflict"),
    "503": ("503 Service Unavailable", "SlowDown"),
}
BLOCK = 1 << 16


@dataclass
class Rule:
    """One injected fault."""

    kind: str
    count: float
    until: float
    method: str
    path_part: str
    after_bytes: int
    stall: float

    def matches(self, method: str, path: str) -> bool:
        return (
            self.count > 0 and time.monotonic() < self.until and self.method in ("", method) and self.path_part in path
        )


@dataclass
class _State:
    rules: list[Rule] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    p50: float = 0.0
    sigma: float = 0.0


class FaultProxy:
    """The proxy's process; clients connect to `endpoint`."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._pipe: Connection | None = None
        self._lock = threading.Lock()
        self.port = 0

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("forkserver")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, *self._target), daemon=True)
        self._process.start()
        self.port = self._pipe.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()

    def set_latency(self, *, p50: float, p99: float | None = None) -> None:
        """Delay each request by a lognormal time in seconds with this median and 99th percentile."""
        # 2.326 is the 99th percentile of the normal distribution.
        self._ask("latency", (p50, math.log(p99 / p50) / 2.326 if p99 and p50 else 0.0))

    def inject(
        self,
        kind: str,
        *,
        count: float = math.inf,
        seconds: float = math.inf,
        method: str = "",
        path_part: str = "",
        after_bytes: int = 0,
        stall: float = 20.0,
    ) -> None:
        """Do `kind` (see KINDS) to the next `count` matching requests, during the next `seconds`."""
        assert kind in KINDS
        rule = Rule(kind, count, time.monotonic() + seconds, method, path_part, after_bytes, stall)
        self._ask("inject", rule)

    def clear(self) -> None:
        """End all faults."""
        self._ask("clear", None)

    def counters(self) -> dict[str, int]:
        """Requests by method, faults by kind, `connections`, bytes `up` and `down` so far."""
        return dict(self._ask("counters", None))

    def requests(self) -> int:
        """Requests of all methods so far."""
        return sum(size for name, size in self.counters().items() if name.isupper() and name.isalpha())

    def _ask(self, verb: str, value: object) -> Any:
        with self._lock:
            assert self._pipe is not None, "use the proxy as a context manager"
            self._pipe.send((verb, value))
            return self._pipe.recv()


def _serve(pipe: Connection, host: str, port: int) -> None:
    state = _State()

    async def main() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            state.counters["connections"] += 1
            with suppress(ConnectionError, asyncio.IncompleteReadError, OSError):
                await _client(state, host, port, reader, writer)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=BLOCK)
        pipe.send(server.sockets[0].getsockname()[1])
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), lambda: _control(state, pipe))
        await server.serve_forever()

    asyncio.run(main())


def _control(state: _State, pipe: Connection) -> None:
    verb, value = pipe.recv()
    if verb == "inject":
        state.rules.append(value)
    elif verb == "clear":
        state.rules.clear()
    elif verb == "latency":
        state.p50, state.sigma = value
    pipe.send(dict(state.counters) if verb == "counters" else None)


async def _client(
    state: _State, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    upstream_reader, upstream_writer = await asyncio.open_connection(host, port, limit=BLOCK)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path = head.split(b" ", 2)[:2]
            name = method.decode()
            state.counters[name] += 1
            if state.p50:
                await asyncio.sleep(state.p50 * math.exp(random.gauss(0.0, state.sigma)))
            rule = _take(state, name, path.decode())
            if rule is not None and rule.kind == "stall":
                await asyncio.sleep(rule.stall)
                return
            refused = rule is not None and rule.kind in REFUSALS
            to_server = None if refused else upstream_writer
            if to_server is not None:
                to_server.write(head)
            state.counters["up"] += await _body(reader, to_server, _length(head), None)
            if rule is not None and refused:
                await _refuse(writer, name, rule.kind)
                continue
            kept = await _answer(state, rule, name, upstream_reader, writer)
            if not kept:
                return
    finally:
        upstream_writer.close()


async def _answer(
    state: _State,
    rule: Rule | None,
    method: str,
    server: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> bool:
    """Forward an answer under the rule; False if the connection is over."""
    head = await server.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    state.counters[f"status {status}"] += 1
    length = 0 if method == "HEAD" or status in (204, 304) else _length(head)
    kind = rule.kind if rule is not None else ""
    if kind in ("lose", "503-after"):
        await _body(server, None, length, None)
        if kind == "lose":
            _reset(writer)
            return False
        await _refuse(writer, method, "503")
        return True
    writer.write(head)
    if rule is not None and kind in ("reset", "stall-body"):
        await _body(server, writer, length, rule.after_bytes)
        if kind == "stall-body":
            await asyncio.sleep(rule.stall)
        _reset(writer)
        return False
    state.counters["down"] += await _body(server, writer, length, None)
    return b"connection: close" not in head.lower()


def _take(state: _State, method: str, path: str) -> Rule | None:
    for rule in state.rules:
        if rule.matches(method, path):
            rule.count -= 1
            state.counters[rule.kind] += 1
            return rule
    return None


async def _refuse(writer: asyncio.StreamWriter, method: str, kind: str) -> None:
    line, code = REFUSALS[kind]
    body = b"" if method == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
    writer.write(f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


def _length(head: bytes) -> int:
    """Content-Length; -1 for chunked transfer."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
        if name.lower() == b"transfer-encoding" and b"chunked" in value.lower():
            return -1
    return 0


async def _body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, length: int, at_most: int | None
) -> int:
    """Forward at most `at_most` bytes of a body (drop them if `writer` is None); their number."""
    if length < 0:
        return await _chunked(reader, writer)
    done = 0
    end = length if at_most is None else min(length, at_most)
    while done < end:
        block = await reader.read(min(BLOCK, end - done))
        if not block:
            raise ConnectionResetError("the other side closed within a body")
        done += len(block)
        if writer is not None:
            writer.write(block)
            await writer.drain()
    if writer is not None:
        await writer.drain()
    return done


async def _chunked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> int:
    total = 0
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        block = await reader.readexactly(size + 2)
        total += size
        if writer is not None:
            writer.write(line + block)
            await writer.drain()
        if size == 0:
            return total


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
