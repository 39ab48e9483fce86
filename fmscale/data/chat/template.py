"""Messages as text, by a chat template."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from fmscale.data.chat.sandbox import GENERATION, OverBudget, Refusal, compiled, marking, run
from fmscale.errors import DataError
from fmscale.store.datasets.templates import ChatTemplate

MOST_BYTES = 1 << 20
"""Bytes of a template; the largest in use has 60 KB."""

TYPED = "\ufdd0"
"""Noncharacter before the name of a special token that users typed."""

MARKS = re.compile(f"[{TYPED}{GENERATION}]")

Messages = Sequence[Mapping[str, Any]]
"""Messages with role and content, as OpenAI has them."""


class TemplateFault(DataError):
    """A chat template that cannot be used."""


class RefusedMessages(DataError):
    """Messages that a template cannot render."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A text with its places, in characters."""

    text: str
    typed: frozenset[int]
    """Beginnings of names of special tokens that come from messages, not from the template."""
    generated: tuple[tuple[int, int], ...]
    """Spans of `{% generation %}`."""


class Renderer:
    """Renders messages by a template, in bounded work and without a clock. Threads may share it."""

    def __init__(self, template: ChatTemplate) -> None:
        """Raises TemplateFault for a text that is no template."""
        self.template = template
        if len(template.text.encode(errors="replace")) > MOST_BYTES:
            raise TemplateFault(
                "The chat template is too long",
                found=f"{len(template.text):,} characters",
                remedy=f"A template has {MOST_BYTES:,} bytes at most.",
            )
        try:
            self._template = compiled(template.text)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateFault(
                "The chat template is not a Jinja template that can be used",
                found=f"{line}{error}",
                remedy="Mend it, or give another (`--template FILE.jinja`). Chance (random, lipsum), `include` and "
                "filters that make long texts are not there.",
            ) from error

    def render(
        self, messages: Messages, *, add_generation_prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> str:
        """The text of messages; with `add_generation_prompt` it ends where the assistant's answer begins.

        Raises RefusedMessages for messages that the template refuses or cannot read, TemplateFault for a template that
        loops or makes too long a text.
        """
        return self._run(_texts(messages), tools, add_generation_prompt)

    def marked(
        self,
        messages: Messages,
        specials: re.Pattern[str],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> Rendered:
        """`render`, with the places of typed special tokens, whose names are `specials`, and of generated spans.

        Raises RefusedMessages also for messages with a noncharacter from U+FDD0 to U+FDD3, which mark places.
        """
        plain = _texts(messages)
        if found := MARKS.search(json.dumps([plain, tools], ensure_ascii=False, default=str)):
            raise RefusedMessages(
                "A text has a noncharacter of Unicode that marks places",
                found=repr(found[0]),
                remedy="Remove it: these characters are for no exchange of texts.",
            )
        given, offered = _marked(plain, specials), _marked(tools, specials)
        token = marking.set(True)
        try:
            text = self._run(given, offered, add_generation_prompt)
        finally:
            marking.reset(token)
        pieces, typed, begins, generated, place, size = [], set(), list[int](), list[tuple[int, int]](), 0, 0
        for mark in MARKS.finditer(text):
            pieces.append(text[place : mark.start()])
            size += mark.start() - place
            place = mark.end()
            if mark[0] == GENERATION[0]:
                begins.append(size)
            elif mark[0] == GENERATION[1] and begins:
                generated.append((begins.pop(), size))
            elif mark[0] == TYPED and specials.match(text, place):
                typed.add(size)
        whole = "".join([*pieces, text[place:]])
        return Rendered(text=whole, typed=frozenset(typed), generated=tuple(sorted(generated)))

    def _run(self, messages: Messages, tools: Any, add_generation_prompt: bool) -> str:
        values = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return run(self._template, {**self.template.special_tokens, **values})
        except (OverBudget, RecursionError, MemoryError, jinja2.exceptions.SecurityError) as error:
            raise TemplateFault(
                "The chat template does what no template may: it loops, grows without bound or leaves its sandbox",
                found=f"{type(error).__name__}: {error}",
                remedy="Mend it, or give another: `fmscale dataset render STORE/DATASET --template FILE.jinja`.",
            ) from error
        except Refusal as error:
            raise RefusedMessages(
                "The chat template refuses these messages", found=str(error), remedy="Change the messages."
            ) from error
        except Exception as error:
            clock = "strftime_now" in str(error)
            raise RefusedMessages(
                "The chat template cannot render these messages",
                found=f"{type(error).__name__}: {error}",
                remedy="A template has no clock here: write the date into it, and give it as --template."
                if clock
                else "Change the messages, or mend the template.",
            ) from error


def _texts(messages: Messages) -> list[dict[str, Any]]:
    """The messages without keys that have no value, and with content as one text where it is parts of text."""
    made = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        parts = kept.get("content")
        if isinstance(parts, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in parts):
            kept["content"] = "".join(part["text"] for part in parts)
        made.append(kept)
    return made


def _marked(value: Any, specials: re.Pattern[str]) -> Any:
    """The value with TYPED before every name of a special token in its texts."""
    if isinstance(value, str):
        return specials.sub(f"{TYPED}\\g<0>", value)
    if isinstance(value, Mapping):
        return {_marked(key, specials): _marked(one, specials) for key, one in value.items()}
    return [_marked(one, specials) for one in value] if isinstance(value, (list, tuple)) else value
