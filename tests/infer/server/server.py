"""A real `fmscale serve` in a process of its own, and a client."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fmscale.infer.answer import ChatModel
from fmscale.infer.load import open_trained
from fmscale.infer.server.api import Limits
from fmscale.infer.server.app import LOOPBACK, App
from fmscale.infer.server.http import listen, make_server
from fmscale.infer.server.worker import ModelWorker

JSON = {"Content-Type": "application/json"}
POLLS = 20_000
"""Looks at a state that does not come, about half a minute."""


@dataclass(kw_only=True)
class Server:
    """A server on a free port of loopback."""

    port: int
    model: str
    process: subprocess.Popen[str] | None = None

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] = JSON) -> http.client.HTTPResponse:
        """The response to a request; `body` is bytes, or becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        return connection.getresponse()

    def chat(self, text: str = "hello", **fields: Any) -> http.client.HTTPResponse:
        """The response to a message, by default to the likeliest answer."""
        asked = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        return self.ask("POST", "/v1/chat/completions", {**asked, **fields})

    def health(self) -> dict[str, Any]:
        """The state of the server."""
        found: dict[str, Any] = json.loads(self.ask("GET", "/health").read())
        return found

    def until(self, **state: Any) -> None:
        """Wait until the server's state has these values; fail if it never has."""
        for _ in range(POLLS):
            if state.items() <= (found := self.health()).items():
                return
            assert self.process is None or self.process.poll() is None
        raise AssertionError((state, found))


@contextmanager
def serving(address: str, *options: str) -> Iterator[Server]:
    """A server of a run while the block lasts; its end by SIGTERM is clean."""
    start = "import sys; from fmscale.cli.main import main; sys.argv[0] = 'fmscale'; main()"
    words = [sys.executable, "-c", start, "serve", address, "--port", "0", "--device", "cpu", *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.match(r"(\S+) \(run \S+, step 1\) at http://127\.0\.0\.1:(\d+)/\n", line)
            assert found is not None, line + process.stderr.read()
            server = Server(process=process, port=int(found[2]), model=found[1])
            yield server
            process.send_signal(signal.SIGTERM)
            assert process.stderr.read() == ""
            assert process.wait(60) == 0
        finally:
            process.kill()


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """Events of a stream as they come, up to [DONE]."""
    assert response.status == 200, response.read()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    while (line := response.readline()) != b"data: [DONE]\n":
        assert line.startswith(b"data: "), line
        assert response.readline() == b"\n"
        yield json.loads(line[6:])
    assert response.readline() == b"\n"
    assert response.read() == b""


@contextmanager
def served_here(address: str, **limits: Any) -> Iterator[Server]:
    """A server in a thread of this process, with limits that the command line does not offer."""
    bounds = Limits(**limits)
    worker = ModelWorker(ChatModel(open_trained(address)), bounds)
    server = make_server(App(worker, "here", bounds, LOOPBACK), worker, bounds, 0.0)
    listener = listen("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it: little fills them
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Server(port=listener.getsockname()[1], model="here")
    finally:
        server.should_exit = True
        thread.join()
        worker.close()
