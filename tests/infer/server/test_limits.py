"""Clients that are too slow, and requests that take too long."""

import json
import socket

import pytest

from tests.infer.server.server import served_here
from tests.infer.talkers import LETTERS, save_talker

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("limits") / "store")
    save_talker(url, "talker", context=1 << 16)  # more tokens than the time limit below allows
    return f"{url}#talker"


def connected(port: int, data: bytes) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=60)
    raw.sendall(data)
    return raw


def rest(raw: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    data = b""
    with raw:
        try:
            while piece := raw.recv(1 << 16):
                data += piece
        except ConnectionResetError:
            pass
    return data


def test_headers_and_bodies_must_come_in_time(address: str) -> None:
    with served_here(address, body_seconds=0.2) as server:
        assert rest(connected(server.port, b"")) == b""
        assert rest(connected(server.port, HEAD)) == b""
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        again = connected(server.port, health)
        assert again.recv(15) == b"HTTP/1.1 200 OK"
        again.sendall(HEAD)  # the second request of a connection
        assert b"HTTP" not in rest(again)
        late = connected(server.port, HEAD + b'Content-Length: 100\r\nConnection: close\r\n\r\n{"model"')
        assert rest(late).startswith(b"HTTP/1.1 408 ")


def test_an_answer_that_takes_too_long_is_cut_and_so_is_a_wait(address: str) -> None:
    asked = {"model": "here", "messages": [{"role": "user", "content": "letters"}], "temperature": 0}
    body = json.dumps(asked).encode()
    request = HEAD + f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with served_here(address, seconds=1.0, max_tokens=60000) as server:
        head, _, text = rest(connected(server.port, request)).partition(b"\r\n\r\n")
        (choice,) = json.loads(text)["choices"]
        assert (head[:12], choice["finish_reason"]) == (b"HTTP/1.1 200", "length")
        assert (LETTERS * 3000).startswith(choice["message"]["content"])
        assert json.loads(text)["usage"]["completion_tokens"] < 60000
    with served_here(address, seconds=0.0) as server:  # over while it waits for the model
        head, _, text = rest(connected(server.port, request)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert "before its answer began" in json.loads(text)["error"]["message"]


def test_a_client_that_does_not_read_loses_its_connection(address: str) -> None:
    stream = {
        "model": "here",
        "messages": [{"role": "user", "content": "letters"}],
        "temperature": 0,
        "stream": True,
        "n": 8,
    }
    body = json.dumps(stream).encode()
    with served_here(address, body_seconds=0.2, max_tokens=4000) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert raw.recv(12) == b"HTTP/1.1 200"
        assert server.chat(max_tokens=1).status == 200  # its turn comes when the first answer has ended
        assert server.health()["tokens"] < 32000
        assert b"[DONE]" not in rest(raw)
