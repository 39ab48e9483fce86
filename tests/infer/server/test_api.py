"""Drawn requests: each is read, or refused in OpenAI's form with a 4xx status; nothing else comes out."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.infer.server.api import NAMES, ApiError, ChatRequest, Limits, read_json, read_request

TEXT = st.text(st.characters(), max_size=8)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.just("user"), st.just("text"))
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("role", "content", "type")), inner),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(("user", "system", "robot")), "content": VALUE | TEXT})
BODY = st.dictionaries(st.sampled_from(NAMES) | TEXT, VALUE, max_size=6)
GOOD = {"model": "talker", "messages": [{"role": "user", "content": "hello"}]}


def read(data: bytes) -> ChatRequest | ApiError:
    try:
        return read_request(read_json(data), "talker", Limits())
    except ApiError as refusal:
        error = refusal
    told = json.loads(json.dumps(error.body))["error"]
    assert 400 <= error.status < 500
    assert told["message"].endswith((".", "?"))
    assert len(told["message"]) < 800
    return error


@settings(max_examples=120, deadline=None)
@given(BODY, st.lists(MESSAGE, max_size=3) | VALUE)
def test_any_fields_are_read_or_refused(body: dict[str, Any], messages: Any) -> None:
    data = json.dumps({**GOOD, "messages": messages, **body})
    found = read(data.encode(errors="surrogatepass"))
    if isinstance(found, ChatRequest):
        assert found.messages
        assert all(isinstance(message["content"], str) for message in found.messages)
        "".join(message["content"] for message in found.messages).encode()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=20), st.integers(0, 80), st.integers(0, 80))
def test_any_bytes_are_read_or_refused(noise: bytes, begin: int, end: int) -> None:
    whole = json.dumps(GOOD).encode()
    read(whole[:begin] + noise + whole[end:])


def test_what_asks_for_nothing_is_taken() -> None:
    found = read(json.dumps({**GOOD, "logprobs": False, "tools": None, "n": 1, "temperature": 0}).encode())
    assert isinstance(found, ChatRequest)
    assert (found.answers, found.room, found.sampling.temperature, found.sampling.top_p) == (1, False, 0.0, None)
