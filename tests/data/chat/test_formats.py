"""Formats in use, in one form; what has no form is refused by reason."""

import json
from typing import Any

import pytest

from fmscale.data.chat.formats import Fault, normal_form
from tests.helpers.chats import chat

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": None}}}]}


def formed(shape: str, **record: Any) -> tuple[list[Any], list[list[Any]]]:
    made = normal_form(record, shape)
    return [json.loads(one) for one in made["messages"]], [[json.loads(o) for o in side] for side in made["answers"]]


@pytest.mark.parametrize(
    ("shape", "record", "messages", "answers"),
    [
        ("chat", {"messages": [USER, ANSWER]}, [USER, ANSWER], []),
        (
            "chat",
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes", "weight": 0}]},
            [USER, {**ANSWER, "weight": 0}],
            [],
        ),
        (
            "chat",
            {"instruction": "add", "input": "1 2", "output": "yes"},
            [{**USER, "content": "add\n\n1 2"}, ANSWER],
            [],
        ),
        ("chat", {"system": "s", "messages": [USER, ANSWER]}, [{"role": "system", "content": "s"}, USER, ANSWER], []),
        (
            "chat",
            {"messages": [USER, CALL, {"role": "tool", "content": ""}, ANSWER]},
            [USER, {key: value for key, value in CALL.items() if value}, {"role": "tool", "content": ""}, ANSWER],
            [],
        ),
        ("completion", {"prompt": "hi", "completion": "yes"}, ["hi"], [["yes"]]),
        ("completion", {"prompt": [USER], "completion": [ANSWER]}, [USER], [[ANSWER]]),
        ("completion", {"prompt": "hi", "completion": [ANSWER]}, [USER], [[ANSWER]]),
        ("preference", {"prompt": "hi", "chosen": "yes", "rejected": "no"}, ["hi"], [["yes"], ["no"]]),
        ("preference", {"chosen": "hi: yes", "rejected": "hi: no"}, ["hi:"], [[" yes"], [" no"]]),
        ("preference", {"chosen": [USER, ANSWER], "rejected": [USER, NO]}, [USER], [[ANSWER], [NO]]),
        ("preference", {"prompt": "hi", "chosen": [USER, ANSWER], "rejected": [USER, NO]}, [USER], [[ANSWER], [NO]]),
        ("preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]}, [USER], [[ANSWER], [NO]]),
        ("ranking", {"prompt": "hi", "answers": ["yes", "no"]}, ["hi"], [["yes"], ["no"]]),
        ("ranking", {"prompt": "hi", "answers": ["no", "yes"], "scores": [1, 2.5]}, ["hi"], [["yes"], ["no"]]),
        ("ranking", {"prompt": [USER], "answers": [NO, "yes"], "ranks": [2, 1]}, [USER], [[ANSWER], [NO]]),
        ("prompts", {"prompt": "hi"}, ["hi"], []),
        ("prompts", {"messages": [USER]}, [USER], []),
    ],
)
def test_formats_in_use_have_one_form(shape: str, record: dict[str, Any], messages: Any, answers: Any) -> None:
    assert formed(shape, **record) == (messages, answers)


def test_other_keys_tools_and_expected_answers_are_kept() -> None:
    made = normal_form({"prompt": "1 + 1?", "answer": 2, "level": {"of": "first"}, "none": None}, "prompts")
    assert (made["answer"], made["extra"], made["tools"]) == ("2", '{"level": {"of": "first"}}', None)
    made = normal_form({"messages": [USER, ANSWER], "tools": [{"name": "f"}], "answer": 3}, "chat")
    assert (made["tools"], made["extra"], made["answer"]) == ('[{"name": "f"}]', '{"answer": 3}', None)


@pytest.mark.parametrize(
    ("shape", "record", "reason", "told"),
    [
        ("chat", {"prompt": "a", "completion": "b"}, "kind", "those of --as completion"),
        ("completion", {"messages": [USER, ANSWER]}, "kind", "those of --as chat"),
        ("preference", {"prompt": "a", "answers": ["b", "c"]}, "kind", "those of --as ranking"),
        ("prompts", {"prompt": "a", "chosen": "b", "rejected": "c"}, "kind", "those of --as preference"),
        ("prompts", {"messages": [USER, ANSWER]}, "kind", "--as chat"),
        ("chat", {"text": "a"}, "kind", "the keys text are not those of chat"),
        ("chat", {"messages": [USER]}, "unanswered", "1 messages"),
        ("chat", {"messages": [USER, {"role": "boss", "content": "x"}, ANSWER]}, "role", "boss"),
        ("chat", {"conversations": [{"from": "ape", "value": "x"}]}, "role", "ape"),
        ("chat", {"messages": []}, "malformed", "no messages"),
        ("chat", {"messages": "hi"}, "malformed", "str for a list"),
        ("chat", {"messages": ["hi"]}, "malformed", "str for a message"),
        ("chat", {"messages": [{"content": "hi"}]}, "malformed", "without a role"),
        ("chat", {"messages": [{**USER, "content": ""}, ANSWER]}, "content", "a message of user is empty"),
        ("chat", {"messages": [USER, {"role": "assistant"}]}, "content", "a message of assistant has no text"),
        (
            "chat",
            {"messages": [{**USER, "content": [{"type": "image", "url": "x"}]}, ANSWER]},
            "content",
            "has no text",
        ),
        ("chat", {"messages": [USER, ANSWER], "tools": "[{"}, "malformed", "tools is no JSON"),
        ("chat", {"messages": [USER, ANSWER], "tools": '{"name": "f"}'}, "malformed", "tools is dict"),
        ("completion", {"prompt": "a", "completion": ""}, "content", "an answer is empty"),
        ("completion", {"prompt": [USER], "completion": [USER]}, "unanswered", "1 messages"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "tied", "are equal"),
        ("preference", {"chosen": "b", "rejected": [ANSWER]}, "malformed", "no prompt"),
        ("ranking", {"prompt": "a", "answers": ["b"]}, "malformed", "two or more"),
        ("ranking", {"prompt": "a", "answers": ["b", "c"], "scores": [1]}, "malformed", "a number an answer"),
        ("ranking", {"prompt": "a", "answers": ["b", "c"], "scores": [1, 1]}, "tied", "scores are"),
        ("ranking", {"prompt": "a", "answers": ["b", "b"]}, "tied", "two answers are equal"),
    ],
)
def test_records_without_a_form_are_refused_by_reason(
    shape: str, record: dict[str, Any], reason: str, told: str
) -> None:
    with pytest.raises(Fault, match=told) as caught:
        normal_form(record, shape)
    assert caught.value.reason == reason


def test_roles_need_not_take_turns() -> None:
    messages = [*chat("a", "b"), ANSWER, USER, USER, ANSWER]
    assert formed("chat", messages=messages) == (messages, [])
