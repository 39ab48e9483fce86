"""Requests of OpenAI's chat completions, version 1, and errors in their form.

A field that the server does not serve is refused by name, unless its value asks for nothing.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fmscale.errors import FmscaleError
from fmscale.infer.sampling import Sampling

ROLES = ("system", "developer", "user", "assistant")
SAMPLED: dict[str, tuple[type, float, float, Any]] = {
    "temperature": (float, 0.0, 100.0, 1.0),
    "top_p": (float, 1e-6, 1.0, None),
    "top_k": (int, 1, 2**31, None),
    "min_p": (float, 0.0, 1.0, None),
    "repetition_penalty": (float, 0.01, 100.0, 1.0),
    "seed": (int, 0, 2**63 - 1, None),
}
"""Settings of the choice: type, least, most, default."""
UNSERVED = (
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "functions"),
    *("response_format", "store"),
)
"""Fields that may only ask for nothing: null, 0, false, nothing in a list, or the format `text`."""
UNREAD = (
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"),
    *("tool_choice", "function_call", "parallel_tool_calls"),
)
"""Fields about the client, or about tools that nobody offers: they change no answer."""
LENGTHS = ("max_tokens", "max_completion_tokens")
NAMES = ("model", "messages", "stream", "stream_options", "stop", "n", *LENGTHS, *SAMPLED, *UNSERVED, *UNREAD)
"""All fields that a request may have."""
MOST_DEPTH, MOST_STOPS, MOST_STOP_CHARACTERS, MOST_ANSWERS = 32, 4, 256, 8


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server."""

    max_tokens: int = 1024
    """New tokens of an answer."""
    seconds: float = 300.0
    """Seconds of a request, its wait included."""
    waiting: int = 16
    """Requests that wait for the model; a further request is refused with status 429."""
    body_bytes: int = 2**20
    """Bytes of a request's body."""
    body_seconds: float = 20.0
    """Seconds in which a request's headers must come, and then its body."""
    messages: int = 512
    """Messages of a request."""


class ApiError(FmscaleError):
    """A request that is refused, or has failed, with its HTTP status and OpenAI's `param` and `code`."""

    def __init__(self, cause: str, *, status: int = 400, param: str = "", code: str = "", **told: Any) -> None:
        super().__init__(cause, **told)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        told = {"message": str(self), "type": kind.get(self.status, "invalid_request_error")}
        return {"error": {**told, "param": self.param or None, "code": self.code or None}}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked request."""

    messages: list[dict[str, str]]
    """Role and content of each message."""
    sampling: Sampling
    """Choice of the tokens."""
    max_tokens: int
    """Most new tokens of an answer."""
    room: bool
    """True if the client gave `max_tokens`: an answer of this length must fit into the context."""
    stop: tuple[str, ...]
    """Texts that end an answer."""
    answers: int
    """Answers to the same messages."""
    stream: bool
    """True for an event a token."""
    usage: bool
    """True if the stream ends with the counts of tokens."""


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a body. Raises ApiError for bytes that are no JSON in UTF-8 (RFC 8259), or nested deeply."""
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        _check_depth(body, 0)
        json.dumps(body, ensure_ascii=False).encode("utf-8")  # an escaped lone surrogate is no text
        if not isinstance(body, dict):
            raise ValueError(f"{type(body).__name__} is no object")
    except (ValueError, RecursionError) as error:
        raise ApiError("The body is not a JSON object", found=str(error)[:200], remedy="Send JSON in UTF-8.") from error
    return body


def read_request(body: Mapping[str, Any], model: str, limits: Limits) -> ChatRequest:
    """The request of a body. Raises ApiError that names the field, with status 404 for another model's name."""
    for key, value in body.items():
        _check_known(key, value)
    if body.get("model") != model:
        status = 404 if isinstance(body.get("model"), str) else 400
        remedy = f"Write {model!r}; GET /v1/models lists it."
        raise _wrong("model", body.get("model"), remedy, status=status, code="model_not_found")
    lengths = [_number(body, key, int, 1, limits.max_tokens, None) for key in LENGTHS]
    length = next((value for value in lengths if value is not None), None)
    values = {key: _number(body, key, *rule) for key, rule in SAMPLED.items()}
    values["repetition"] = values.pop("repetition_penalty")
    if values["seed"] is None:
        values["seed"] = secrets.randbits(62)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise _wrong("stream_options", options, 'Write {"include_usage": true}, or leave it out.')
    return ChatRequest(
        messages=_messages(body.get("messages"), limits.messages),
        sampling=Sampling(**values),
        max_tokens=length or limits.max_tokens,
        room=length is not None,
        stop=_stops(body.get("stop")),
        answers=_number(body, "n", int, 1, MOST_ANSWERS, 1),
        stream=_flag(body, "stream"),
        usage=_flag(options, "include_usage"),
    )


def _check_known(key: str, value: Any) -> None:
    if key in UNSERVED and value and value != {"type": "text"}:
        raise ApiError(
            "The server does not serve this field",
            found=f"{key} = {_short(value)}",
            remedy="Leave it out.",
            param=key,
            code="unsupported_parameter",
        )
    if key not in NAMES:
        near = get_close_matches(key, NAMES, 1)
        remedy = f"Did you mean {near[0]}?" if near else "Leave it out."
        raise ApiError("No such field", found=_short(key), remedy=remedy, param=key[:80], code="unknown_parameter")


def _messages(value: Any, most: int) -> list[dict[str, str]]:
    if not isinstance(value, list) or not 0 < len(value) <= most:
        found = f"{len(value)} messages" if isinstance(value, list) else value
        raise _wrong("messages", found, f"Send 1 to {most} messages with role and content.")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        found = message.get("role") if isinstance(message, dict) else message
        raise _wrong(f"{where}.role", found, f"A message has a role of {', '.join(ROLES)}, and content.")
    for key, given in message.items():
        if key not in ("role", "content") and given not in (None, []):
            raise _wrong(f"{where}.{key[:80]}", given, "Send role and content.")
    content: Any = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise _wrong(f"{where}.content", content, "Content is a text, or a list of parts of type text.")
    # `developer` is the newer name of `system`, which templates do not know
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": "".join(map(str, texts))}


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    good = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not good or not all(isinstance(stop, str) and 0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops):
        raise _wrong("stop", value, f"Send at most {MOST_STOPS} texts of 1 to {MOST_STOP_CHARACTERS} characters.")
    return tuple(stops)


def _number(body: Mapping[str, Any], key: str, kind: type, least: float, most: float, default: Any) -> Any:
    value: Any = body.get(key)
    if value is None:
        return default
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        noun = "an integer" if kind is int else "a number"
        raise _wrong(key, value, f"Send {noun} from {least:.16g} to {most:.16g}.")
    return kind(value)


def _flag(body: Mapping[str, Any], key: str) -> bool:
    if not isinstance(body.get(key), (bool, type(None))):
        raise _wrong(key, body[key], "Send true or false.")
    return bool(body.get(key))


def _wrong(param: str, value: Any, remedy: str, **more: Any) -> ApiError:
    return ApiError(f"{param} cannot be this", found=_short(value), remedy=remedy, param=param, **more)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_depth(value: Any, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(f"nested deeper than {MOST_DEPTH}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, depth + 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
