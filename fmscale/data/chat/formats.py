"""Records of the formats in use, in one form: JSON texts of messages and answers, tools, and whatever else they have.

A text is the JSON of a message (an object), or of plain text (a string) that no template touches. Keys of messages
stay as they are, tool calls and weights too; keys without a value are left out.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.string())),
        ("answers", pa.list_(pa.list_(pa.string()))),
        ("answer", pa.string()),
        ("tools", pa.string()),
        ("extra", pa.string()),
    ]
)
"""Columns of a record: the conversation or prompt; its answers, best first; the expected answer of a prompt; the tools
that the model may call; other keys."""

SENDERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
"""Roles by the names that `conversations` use in `from`."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles of messages: those of OpenAI."""

FAULTS = {
    "kind": "of another kind than --as says",
    "malformed": "not messages with a role each",
    "role": "under a role that no template knows",
    "content": "empty, or no text, in a message",
    "unanswered": "without a message of the assistant",
    "tied": "answers that are equal, and so have no order",
}
"""Reasons for leaving a record out, in words."""

REMEDIES = {
    "kind": "Take the --as that fits: chat (messages), completion (prompt, completion), preference (chosen, rejected), "
    "ranking (answers), prompts (prompt).",
    "role": f"Rename roles to {', '.join(sorted(ROLES))}.",
    "malformed": "A message is an object with role and content, or with from and value.",
}
"""Advice for some reasons."""


class Fault(Exception):
    """A record that has no such form: `reason` is a key of FAULTS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def normal_form(record: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """The values of SCHEMA's columns for a record of a shape of SHAPES. Raises Fault."""
    rest = {key: value for key, value in record.items() if value is not None}
    tools, answer = _tools(rest.pop("tools", None)), None
    if shape == "prompts" and (answer := rest.pop("answer", None)) is not None:
        answer = answer if isinstance(answer, str) else _json(answer)
    messages, answers = SHAPES[shape](rest)
    return {
        "messages": [_json(one) for one in messages],
        "answers": [[_json(one) for one in each] for each in answers],
        "answer": answer,
        "tools": tools and _json(tools),
        "extra": _json(rest) if rest else None,
    }


Texts = list[Any]
"""Messages, or a single plain text."""


def _chat(rest: dict[str, Any]) -> tuple[Texts, list[Texts]]:
    messages = _dialogue(rest, "chat")
    _require_assistant(messages)
    return messages, []


def _completion(rest: dict[str, Any]) -> tuple[Texts, list[Texts]]:
    if "instruction" in rest:
        *prompt, answer = _dialogue(rest, "completion")
        return prompt, [[answer]]
    prompt, completion = _take(rest, "completion", "prompt", "completion")
    return _unified(prompt, [completion])


def _preference(rest: dict[str, Any]) -> tuple[Texts, list[Texts]]:
    chosen, rejected = _take(rest, "preference", "chosen", "rejected")
    prompt = rest.pop("prompt", None)
    both = (chosen, rejected)
    if all(isinstance(one, list) for one in both):
        shown = [prompt] if isinstance(prompt, Mapping) else prompt
        if isinstance(prompt, str) and chosen and _plain(chosen[0]) == prompt:
            shown = chosen[:1]
        # Both sides often repeat the prompt, or are the only place that has it.
        if prompt is None or (isinstance(shown, list) and all(one[: len(shown)] == shown for one in both)):
            same = common_length(chosen, rejected)
            prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    elif prompt is None and all(isinstance(one, str) for one in both):
        same = common_length(chosen, rejected)
        same -= same > 0 and chosen[same - 1] == " "
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    if prompt is None:
        raise Fault("malformed", "no prompt, and sides of two kinds")
    if chosen == rejected:
        raise Fault("tied", "chosen and rejected are equal")
    return _unified(prompt, [chosen, rejected])


def _ranking(rest: dict[str, Any]) -> tuple[Texts, list[Texts]]:
    prompt, answers = _take(rest, "ranking", "prompt", "answers")
    if not isinstance(answers, list) or len(answers) < 2:
        raise Fault("malformed", "answers is no list of two or more")
    for key, sign in (("scores", -1), ("ranks", 1)):
        values = rest.pop(key, None)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(answers) or not all(map(_is_number, values)):
            raise Fault("malformed", f"{key} is no list of a number an answer")
        if len(set(values)) < len(values):
            raise Fault("tied", f"{key} are {values}")
        answers = [answers[i] for i in sorted(range(len(values)), key=lambda i: sign * values[i])]
    if any(one in answers[:place] for place, one in enumerate(answers)):
        raise Fault("tied", "two answers are equal")
    return _unified(prompt, answers)


def _prompts(rest: dict[str, Any]) -> tuple[Texts, list[Texts]]:
    if {"completion", "chosen", "answers", "instruction"} & rest.keys():
        raise _other_kind(rest, "prompts")
    prompt = rest.pop("prompt", None)
    messages = _messages(prompt) if isinstance(prompt, list) else [prompt] if prompt is not None else None
    messages = _dialogue(rest, "prompts") if messages is None else messages
    if isinstance(messages[-1], str):
        _require_text(messages[-1], "the prompt")
    elif messages[-1]["role"] == "assistant":
        raise Fault("kind", "the last message is the assistant's: --as chat")
    return messages, []


SHAPES: Mapping[str, Callable[[dict[str, Any]], tuple[Texts, list[Texts]]]] = {
    "chat": _chat,
    "completion": _completion,
    "preference": _preference,
    "ranking": _ranking,
    "prompts": _prompts,
}
"""Shapes of records by the names that `fmscale ingest --as` takes. A function takes its keys out of a record, and
returns the conversation or prompt, and the answers."""


def _take(rest: dict[str, Any], shape: str, *keys: str) -> list[Any]:
    if not rest.keys() >= set(keys):
        raise _other_kind(rest, shape)
    return [rest.pop(key) for key in keys]


def _other_kind(rest: Mapping[str, Any], shape: str) -> Fault:
    marks = {"completion": "completion", "chosen": "preference", "answers": "ranking", "messages": "chat"}
    marks |= {"conversations": "chat", "instruction": "chat", "prompt": "prompts"}
    like = next((kind for key, kind in marks.items() if key in rest and kind != shape), None)
    keys = ", ".join(list(rest)[:8])
    return Fault("kind", f"the keys {keys}" + (f" are those of --as {like}" if like else f" are not those of {shape}"))


def _dialogue(rest: dict[str, Any], shape: str) -> Texts:
    """The messages of a record of one conversation."""
    if "instruction" in rest:
        told, given = rest.pop("instruction"), rest.pop("input", None)
        asked = f"{told}\n\n{given}" if given else told
        answer = rest.pop("output", None)
        found: Any = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    else:
        key = next((key for key in ("messages", "conversations") if key in rest), None)
        if key is None:
            raise _other_kind(rest, shape)
        found = rest.pop(key)
    messages = _messages(found)
    if (system := rest.pop("system", None)) and messages[0]["role"] != "system":
        messages.insert(0, _message({"role": "system", "content": system}))
    return messages


def _unified(prompt: Any, answers: list[Any]) -> tuple[Texts, list[Texts]]:
    """Prompt and answers as plain texts if all are texts, else all as messages."""
    if isinstance(prompt, str) and all(isinstance(one, str) for one in answers):
        for one in answers:
            _require_text(one, "an answer")
        return [prompt], [[one] for one in answers]
    context = _messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    sides = []
    for one in answers:
        given = {"role": "assistant", "content": one} if isinstance(one, str) else one
        sides.append(_messages(given if isinstance(given, list) else [given]))
        _require_assistant(sides[-1])
    return context, sides


def _messages(found: Any) -> Texts:
    if not isinstance(found, list) or not found:
        raise Fault("malformed", f"{type(found).__name__} for a list of messages" if found != [] else "no messages")
    return [_message(one) for one in found]


def _message(found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise Fault("malformed", f"{type(found).__name__} for a message")
    message = {key: value for key, value in found.items() if value is not None}
    if "from" in message and "role" not in message:
        sender = message.pop("from")
        message = {"role": SENDERS.get(str(sender), sender), "content": message.pop("value", None), **message}
    role = message.get("role")
    if not isinstance(role, str):
        raise Fault("malformed", "a message without a role")
    if role not in ROLES:
        raise Fault("role", repr(role))
    content = message.get("content")
    if content in (None, "", []) and (role in ("system", "tool", "function") or message.get("tool_calls")):
        return message  # an empty result of a tool, and an empty system message, mean something
    _require_text(_plain(message), f"a message of {role}")
    return message


def _plain(message: Any) -> Any:
    """The text of a message's content; None for content that is no text."""
    content = message.get("content", message.get("value")) if isinstance(message, Mapping) else None
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _require_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise Fault("content", f"{where} has no text")
    if not text:
        raise Fault("content", f"{where} is empty")


def _require_assistant(messages: Texts) -> None:
    if all(message["role"] != "assistant" for message in messages):
        raise Fault("unanswered", f"{len(messages)} messages")


def common_length(one: Any, other: Any) -> int:
    """Length of the longest common beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _tools(found: Any) -> list[Any] | None:
    """The tools of a record, which often are JSON text in tables."""
    try:
        tools = json.loads(found) if isinstance(found, str) and found else found
    except ValueError as error:
        raise Fault("malformed", f"tools is no JSON: {error}") from error
    if tools and not isinstance(tools, list):
        raise Fault("malformed", f"tools is {type(tools).__name__} and no list")
    return tools or None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
