"""The routes of the server, as an ASGI application (asgi.readthedocs.io, HTTP 2.3).

A page of another origin must not use the model: on loopback the Host header names loopback, so that a name that leads
here (DNS rebinding) is refused. A foreign Origin is refused too, and a body must be declared as JSON, which browsers do
not send to another origin without asking it; no answer allows another origin.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from fmscale.infer.server.api import ApiError, ChatRequest, Limits, read_json, read_request
from fmscale.infer.server.page import PAGE, POLICY
from fmscale.infer.server.worker import FAILURE, Event, ModelWorker, Replies

Values = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Values]]
Send = Callable[[Values], Awaitable[None]]
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
UNREAD_BYTES = 2**24
"""Bytes that are read and dropped behind the largest body: a client that is cut off while it sends sees no answer."""
FINISH = {"stop": "stop", "length": "length", "cancelled": "length"}

log = logging.getLogger(__name__)


class _Gone(Exception):
    """The client has closed the connection."""


class App:
    """The application of one model, with the name `model`. `hosts` are the names of this server that a Host header may
    have; None allows all.
    """

    def __init__(self, worker: ModelWorker, model: str, limits: Limits, hosts: tuple[str, ...] | None) -> None:
        self._worker, self._model, self._limits, self._hosts = worker, model, limits, hosts
        self._began = int(time.time())

    async def __call__(self, scope: Values, receive: Receive, send: Send) -> None:
        """Answer one request."""
        begun: list[Any] = []

        async def watched(message: Values) -> None:
            begun.append(message["type"])
            await send(message)

        try:
            await self._route(scope, receive, watched)
        except _Gone:
            pass
        except Exception as failure:
            error = failure if isinstance(failure, ApiError) else FAILURE
            if error is FAILURE:
                log.exception("A request failed")
            if begun:
                await send({"type": "http.response.body", "body": _event(error.body)})
            else:
                await _respond(send, error.status, error.body)

    async def _route(self, scope: Values, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_origin(headers.get("host", ""), headers.get("origin"))
        method, path, worker = scope["method"], scope["path"], self._worker
        entry = {"id": self._model, "object": "model", "created": self._began, "owned_by": "fmscale"}
        state = {"running": worker.running, "waiting": worker.waiting, "tokens": worker.tokens}
        pages: dict[str, Any] = {
            "/": PAGE,
            "/health": {"status": "ok", "model": self._model, **state},
            "/v1/models": {"object": "list", "data": [entry]},
            f"/v1/models/{self._model}": entry,
            "/v1/chat/completions": None,
        }
        if path not in pages:
            raise ApiError("No such page", found=path[:80], remedy=f"Take {', '.join(pages)}.", status=404)
        allowed = ("POST",) if pages[path] is None else ("GET", "HEAD")
        if method not in allowed:
            raise ApiError("The page has no such method", found=method[:20], remedy=f"Use {allowed[0]}.", status=405)
        if pages[path] is None:
            await self._chat(headers.get("content-type", ""), receive, send)
        else:
            await _respond(send, 200, pages[path])

    def _check_origin(self, host: str, origin: str | None) -> None:
        name, _, port = host.rpartition(":")
        if self._hosts is not None and (name if port.isdecimal() else host).lower() not in self._hosts:
            remedy = f"Use http://{self._hosts[0]}, or start it with --host."
            raise ApiError("The server does not have this name", found=host[:80], remedy=remedy, status=403)
        if origin is not None and origin.partition("://")[2] != host:
            cause, remedy = "Pages of other origins may not use the model", "Use the server's own page."
            raise ApiError(cause, found=origin[:80], remedy=remedy, status=403)

    async def _chat(self, kind: str, receive: Receive, send: Send) -> None:
        if kind.partition(";")[0].strip().lower() != "application/json":
            cause, remedy = "The body is not declared as JSON", "Send Content-Type: application/json."
            raise ApiError(cause, found=kind[:80], remedy=remedy, status=415)
        request = read_request(read_json(await self._body(receive)), self._model, self._limits)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | _Gone]()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody reads
                loop.call_soon_threadsafe(events.put_nowait, event)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":  # nothing else comes behind a body
                pass
            job.gone.set()
            events.put_nowait(_Gone())

        job = self._worker.submit(request, tell)
        watching = asyncio.create_task(watch())
        try:
            await (self._stream if request.stream else self._whole)(request, _until_end(events), send)
        finally:
            job.gone.set()
            watching.cancel()

    async def _body(self, receive: Receive) -> bytes:
        data, size, most, seconds = bytearray(), 0, self._limits.body_bytes, self._limits.body_seconds
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more and size <= most + UNREAD_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    size += len(message.get("body", b""))
                    data += message.get("body", b"") if size <= most else b""
                    more = message.get("more_body", False)
        except TimeoutError as error:
            found, remedy = f"{size} bytes in {seconds:g} s", "Send it at once."
            raise ApiError("The body did not come in time", found=found, remedy=remedy, status=408) from error
        if size > most:
            found, remedy = f"more than {most} bytes", "Send fewer or shorter messages."
            raise ApiError("The body is too large", found=found, remedy=remedy, status=413)
        return bytes(data)

    async def _whole(self, request: ChatRequest, events: AsyncIterator[Any], send: Send) -> None:
        outcome = [event async for event in events][-1]
        choices = [
            _choice(number, FINISH[one.end], message={"role": "assistant", "content": one.text, "refusal": None})
            for number, one in enumerate(outcome.answers)
        ]
        await _respond(send, 200, {**self._head("chat.completion"), "choices": choices, "usage": _usage(outcome)})

    async def _stream(self, request: ChatRequest, events: AsyncIterator[Any], send: Send) -> None:
        head = self._head("chat.completion.chunk")
        first = {"role": "assistant", "content": ""}
        chunks = [_choice(number, None, delta=first) for number in range(request.answers)]
        async for event in events:
            if chunks:
                # only now: a request that the model cannot take has its status
                await _start(send, 200, "text/event-stream; charset=utf-8")
            ended = isinstance(event, Replies)
            if ended:
                chunks += [_choice(n, FINISH[one.end], delta={}) for n, one in enumerate(event.answers)]
            else:
                chunks.append(_choice(event[0], None, delta={"content": event[1]}))
            data = b"".join(_event({**head, "choices": [choice]}) for choice in chunks)
            if ended:
                data += _event({**head, "choices": [], "usage": _usage(event)}) if request.usage else b""
                data += b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": not ended})
            chunks = []

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{secrets.token_hex(12)}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self._model}


async def _until_end(events: "asyncio.Queue[Event | _Gone]") -> AsyncIterator[Any]:
    """Events up to the Replies; raises ApiError and _Gone from among them."""
    event: Any = None
    while not isinstance(event, Replies):
        event = await events.get()
        if isinstance(event, Exception):
            raise event
        yield event


def _choice(number: int, end: str | None, **content: Any) -> dict[str, Any]:
    return {"index": number, **content, "logprobs": None, "finish_reason": end}


def _usage(outcome: Replies) -> dict[str, int]:
    read, made = outcome.prompt_tokens, sum(answer.tokens for answer in outcome.answers)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


async def _start(send: Send, status: int, kind: str, size: int | None = None) -> None:
    headers = {
        "content-type": kind,
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "content-security-policy": POLICY,
        "referrer-policy": "no-referrer",
        **({} if size is None else {"content-length": str(size)}),
        **({"retry-after": "5"} if status in (429, 503) else {}),
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _respond(send: Send, status: int, content: Any) -> None:
    """A page, or a JSON value."""
    page = isinstance(content, bytes)
    data = content if page else json.dumps(content).encode()
    await _start(send, status, "text/html; charset=utf-8" if page else "application/json", len(data))
    await send({"type": "http.response.body", "body": data})
