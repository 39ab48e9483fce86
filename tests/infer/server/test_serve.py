"""`fmscale serve` for its clients: answers, streams, limits, refusals, and its end."""

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.listeners import listeners, off_loopback
from tests.infer.server.server import JSON, Server, events, serving
from tests.infer.talkers import LETTERS, SAYS, talkers


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkers(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(store: str) -> Iterator[Server]:
    with serving(f"{store}#talker", "--body-bytes", "50000", "--max-tokens", "4000", "--waiting", "2") as server:
        yield server


def answer(response: Any) -> Any:
    assert response.status == 200, response.read()
    return json.loads(response.read())


def test_an_answer(server: Server) -> None:
    found = answer(server.chat())
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": SAYS, "refusal": None}
    assert (choice["index"], choice["finish_reason"], found["object"]) == (0, "stop", "chat.completion")
    size = len("<user\nhello>\n<assistant\n")
    assert found["usage"] == {
        "prompt_tokens": size,
        "completion_tokens": len(SAYS.encode()),
        "total_tokens": size + len(SAYS.encode()),
    }


def test_a_stream_has_whole_characters_in_their_order(server: Server) -> None:
    chunks = list(events(server.chat(stream=True, stream_options={"include_usage": True})))
    first, *middle, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in middle] == list(SAYS)
    assert [chunk["choices"][0]["finish_reason"] for chunk in middle] == [None] * len(SAYS)
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], len(SAYS.encode()))
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1


def test_limits_stop_texts_and_several_answers(server: Server) -> None:
    found = answer(server.chat(max_tokens=3, n=2))
    assert [choice["message"]["content"] for choice in found["choices"]] == [SAYS[:2]] * 2
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}
    assert found["usage"]["completion_tokens"] == 6
    stopped = answer(server.chat(stop=["é, ", "→0", "12"]))["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (SAYS.partition("→")[0], "stop")
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in events(server.chat(stop="olx", stream=True))]
    assert "".join(piece or "" for piece in pieces) == SAYS
    assert "olf" in pieces  # held back until it could not be the stop text


def test_draws_follow_the_seed(server: Server) -> None:
    def said(**fields: Any) -> str:
        found = answer(server.chat(temperature=30, max_tokens=16, **fields))
        return str(found["choices"][0]["message"]["content"])

    assert said(seed=5) == said(seed=5) != said(seed=6)
    assert said() != said()


def test_forms_of_messages(server: Server) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    echoed: dict[str, Any] = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": []}
    whole = [{"role": "developer", "content": "Be brief."}, echoed, {"role": "user", "content": parts}]
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "hello"},
    ]
    counts = {answer(server.chat(messages=form))["usage"]["prompt_tokens"] for form in (whole, plain)}
    assert len(counts) == 1
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "logit_bias": {},
        "tools": None,
        "user": "me",
        "response_format": {"type": "text"},
    }
    assert answer(server.chat(**neutral))["choices"][0]["message"]["content"] == SAYS


def test_models_health_and_the_page(server: Server) -> None:
    models = answer(server.ask("GET", "/v1/models"))["data"]
    assert [model["id"] for model in models] == ["talker"]
    assert answer(server.ask("GET", "/v1/models/talker")) == models[0]
    health = server.health()
    assert health.pop("tokens") >= 0
    assert health == {"status": "ok", "model": "talker", "running": 0, "waiting": 0}
    page = server.ask("GET", "/")
    policy = page.getheader("content-security-policy") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    text = page.read().decode()
    assert "://" not in text
    assert server.ask("HEAD", "/").read() == b""


DEEP = b"[" * 20000 + b"]" * 20000
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("status", "param", "body"),
    [
        (400, None, b""),
        (400, None, b"{"),
        (400, None, b"\xff\xfe{}"),
        (400, None, b"null"),
        (400, None, b"[1, 2]"),
        (400, None, DEEP),
        (400, None, b'{"model": "talker", "metadata": ' + DEEP + b"}"),
        (400, None, {"metadata": json.loads("[" * 40 + "]" * 40)}),
        (400, None, b'{"model": "talker", "messages": [{"role": "user", "content": "\\ud800"}]}'),
        (400, None, b'{"temperature": NaN}'),
        (400, None, b'{"seed": ' + b"9" * 5000 + b"}"),
        (413, None, b'{"model": "' + b"x" * 3_000_000 + b'"}'),
        (400, "model", {"messages": HELLO}),
        (400, "model", {"model": ["talker"], "messages": HELLO}),
        (404, "model", {"model": "gpt-5", "messages": HELLO}),
        (400, "messages", {"messages": None}),
        (400, "messages", {"messages": []}),
        (400, "messages", {"messages": {}}),
        (400, "messages", {"messages": HELLO * 600}),
        (400, "messages[0].role", {"messages": ["hello"]}),
        (400, "messages[1].role", {"messages": [*HELLO, {"role": "tool", "content": ""}]}),
        (400, "messages[0].role", {"messages": [{"role": {}, "content": "x"}]}),
        (400, "messages[0].content", {"messages": [{"role": "user"}]}),
        (400, "messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        (400, "messages[0].content", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (400, "messages[0].tool_calls", {"messages": [{**HELLO[0], "tool_calls": [{}]}]}),
        (400, "messages", {"messages": [{"role": "user", "content": "x" * 5000}]}),
        (400, "max_tokens", {"max_tokens": 0}),
        (400, "max_tokens", {"max_tokens": 1.5}),
        (400, "max_completion_tokens", {"max_completion_tokens": 4001}),
        (400, "n", {"n": True}),
        (400, "n", {"n": 9}),
        (400, "temperature", {"temperature": "hot"}),
        (400, "temperature", {"temperature": -1}),
        (400, "temperature", {"temperature": 10**400}),
        (400, "top_p", {"top_p": 0}),
        (400, "seed", {"seed": -1}),
        (400, "stream", {"stream": 1}),
        (400, "stream_options", {"stream_options": [1]}),
        (400, "include_usage", {"stream_options": {"include_usage": "no"}}),
        (400, "stop", {"stop": ["a"] * 5}),
        (400, "stop", {"stop": ""}),
        (400, "stop", {"stop": [5]}),
        (400, "logprobs", {"logprobs": True}),
        (400, "frequency_penalty", {"frequency_penalty": 0.5}),
        (400, "tools", {"tools": [{"type": "function"}]}),
        (400, "response_format", {"response_format": {"type": "json_object"}}),
        (400, "temprature", {"temprature": 1}),
    ],
)
def test_a_request_that_is_wrong_is_refused_by_name(server: Server, status: int, param: str | None, body: Any) -> None:
    response = server.ask("POST", "/v1/chat/completions", body) if isinstance(body, bytes) else server.chat(**body)
    if isinstance(body, dict) and ("model" in body or param == "model"):
        response = server.ask("POST", "/v1/chat/completions", body)
    error = json.loads(response.read())["error"]
    assert (response.status, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert "found" in error["message"]
    assert "message" not in error["message"] or len(error["message"]) < 600


def test_a_wrong_field_is_told_its_neighbour(server: Server) -> None:
    error = json.loads(server.chat(temprature=1).read())["error"]
    assert error["message"] == "No such field: found 'temprature'. Did you mean temperature?"


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        (404, "GET", "/v1/completions", {}),
        (405, "GET", "/v1/chat/completions", {}),
        (405, "OPTIONS", "/v1/chat/completions", {}),
        (405, "POST", "/", {}),
        (415, "POST", "/v1/chat/completions", {"Content-Type": "text/plain"}),
        (415, "POST", "/v1/chat/completions", {}),
        (403, "GET", "/", {"Host": "evil.example"}),
        (403, "GET", "/v1/models", {"Host": "localhost.evil.example:80"}),
        (403, "POST", "/v1/chat/completions", {**JSON, "Origin": "https://evil.example"}),
        (403, "POST", "/v1/chat/completions", {**JSON, "Origin": "null"}),
        (403, "POST", "/v1/chat/completions", {**JSON, "Origin": "http://localhost:1", "Host": "localhost:2"}),
        (200, "GET", "/health", {"Host": "LOCALHOST:5"}),
        (200, "GET", "/health", {"Host": "[::1]", "Origin": "http://[::1]"}),
    ],
)
def test_routes_and_origins(server: Server, status: int, method: str, path: str, headers: dict[str, str]) -> None:
    response = server.ask(method, path, b"{}" if method == "POST" else None, headers)
    assert response.status == status
    assert not [name for name, _ in response.getheaders() if name.startswith("access-control")]
    assert status == 200 or json.loads(response.read())["error"]["message"]


def test_what_is_no_http_ends_its_connection_alone(server: Server) -> None:
    long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000
    for data in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", long):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(data)
            assert raw.recv(12) in (b"HTTP/1.1 400", b"")
    assert answer(server.chat())["choices"][0]["message"]["content"] == SAYS


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.process is not None
    found = listeners(server.process.pid)
    assert ("127.0.0.1", server.port) in found
    assert off_loopback(found) == {}


def begun(server: Server, text: str, **fields: Any) -> socket.socket:
    """A connection that has sent a request."""
    asked = {"model": server.model, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    body = json.dumps(asked).encode()
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body)
    return raw


def test_a_client_that_leaves_ends_its_answer(server: Server) -> None:
    before = server.health()["tokens"]
    response = server.chat("letters", stream=True)
    stream = events(response)
    assert [next(stream)["choices"][0]["delta"].get("content") for _ in range(4)] == ["", *LETTERS[:3]]
    response.close()
    assert server.chat(max_tokens=1).status == 200  # its turn comes when the first answer has ended
    raw = begun(server, "letters")
    server.until(running=1)
    raw.close()
    assert server.chat(max_tokens=1).status == 200
    assert server.health()["tokens"] - before < 4000


def test_a_full_queue_refuses_and_then_goes_on(server: Server) -> None:
    first = server.chat("letters", stream=True)
    assert next(events(first))
    waiting = []
    for count in (1, 2):
        waiting.append(begun(server, "letters", max_tokens=2))
        server.until(running=1, waiting=count)
    refused = server.chat()
    assert (refused.status, refused.getheader("retry-after")) == (429, "5")
    assert json.loads(refused.read())["error"]["code"] == "queue_full"
    waiting.pop().close()
    server.until(running=1, waiting=1)
    waiting.append(begun(server, "letters", max_tokens=2))  # in the place of the client that left
    server.until(running=1, waiting=2)
    waiting.pop().close()
    first.close()
    with waiting[0] as raw:
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert answer(response)["choices"][0]["message"]["content"] == "AB"


@pytest.mark.slow
@pytest.mark.parametrize(("grace", "finished"), [("60", True), ("0", False)])
def test_sigterm_lets_answers_finish_within_the_grace_time(store: str, grace: str, finished: bool) -> None:
    with serving(f"{store}#talker", "--max-tokens", "4000", "--grace", grace) as server:
        stream = events(server.chat("letters", stream=True, max_tokens=1000 if finished else 4000))
        assert next(stream)
        late = begun(server, "hello")
        server.until(waiting=1)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert (len(chunks) == 1001) == finished
        response = http.client.HTTPResponse(late)
        response.begin()
        assert response.status == (200 if finished else 503)
        assert response.read()
