"""Problems about fruit: a number goes up and down, and the question is for the end. Text, chats, pairs, tokenizer.

A worked answer writes every sum down, so each of its tokens needs a single sum; a direct answer needs all of them at
once (Wei et al., arXiv 2201.11903). A step repeats its event in full: with bare running totals a model of this size
learnt nothing in 200 steps.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = ("tom", "ann", "ben", "eva", "max", "zoe", "sam", "lea")
FRUIT = ("oranges", "apples", "pears", "plums")
GAIN = ("bought", "found", "got", "picked")
LOSS = ("ate", "gave", "lost", "sold")
LARGEST = 30
"""Largest number in a problem; each number is a word of the vocabulary."""
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    *(*SPECIAL, "user", "assistant", "system", *NAMES, *FRUIT, *GAIN, *LOSS),
    *("has", "how", "many", "?", ".", "=", ":", "start", "think", "answer", "step", "by", "only"),
    *map(str, range(LARGEST + 1)),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, by which the chats are rendered."""
STEPS, DIRECT = "step by step .", "answer only ."
"""Requests behind a question for a worked answer and for the bare number."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with its solution."""

    name: str
    fruit: str
    begin: int
    events: tuple[tuple[str, int, int], ...]
    """(verb, number, total afterwards)."""

    @property
    def question(self) -> str:
        events = " . ".join(f"{verb} {number}" for verb, number, _ in self.events)
        return f"{self.name} has {self.begin} {self.fruit} . {events} . how many ?"

    @property
    def answer(self) -> int:
        return self.events[-1][2]

    @property
    def direct(self) -> str:
        """The answer alone."""
        return f"answer : {self.answer} ."

    @property
    def worked(self) -> str:
        """The answer behind all sums."""
        steps = " . ".join(f"{verb} {number} = {total}" for verb, number, total in self.events)
        return f"think : start {self.begin} . {steps} . {self.direct}"


def problems(seed: int, count: int) -> Iterator[Problem]:
    """Problems of 4 to 6 events, the same for equal seeds."""
    rng = random.Random(seed)
    for _ in range(count):
        name, fruit, begin = rng.choice(NAMES), rng.choice(FRUIT), rng.randint(5, 20)
        total, events = begin, []
        for _ in range(rng.randint(4, 6)):
            up = total < 1 or (total < LARGEST and rng.random() < 0.5)
            number = rng.randint(1, min(9, LARGEST - total if up else total))
            total += number if up else -number
            events.append((rng.choice(GAIN if up else LOSS), number, total))
        yield Problem(name=name, fruit=fruit, begin=begin, events=tuple(events))


def texts(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Documents for pretraining: of 10 problems 7 are worked."""
    for number, problem in enumerate(problems(seed, count)):
        yield {"text": f"{problem.question} {problem.direct if number % 10 < 3 else problem.worked}"}


def chats(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Chats: worked on request, bare on request, and either of them without a request."""
    for number, problem in enumerate(problems(seed, count)):
        request = ("", f" {STEPS}", f" {DIRECT}")[number % 3]
        worked = number % 3 == 1 or (number % 3 == 0 and number % 2 == 0)
        said = problem.worked if worked else problem.direct
        yield {"messages": [_message("user", problem.question + request), _message("assistant", said)]}


def pairs(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Preferences: without a request, worked answers are better than bare numbers."""
    for problem in problems(seed, count):
        yield {
            "prompt": [_message("user", problem.question)],
            "chosen": [_message("assistant", problem.worked)],
            "rejected": [_message("assistant", problem.direct)],
        }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tokenizer_json() -> str:
    """A tokenizer of whole words, as `tokenizers` reads it."""
    added = [
        {"id": i, "content": word, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for i, word in enumerate(SPECIAL)
    ]
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": SPECIAL[0]}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    return json.dumps(
        {"version": "1.0", **parts, "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    )
