"""A question with its examples, as plain text or by the run's chat template, and its tokens."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.errors import ConfigError
from fmscale.infer.load import TrainedModel
from fmscale.infer.prompt.templates import Job, render

Form = Literal["auto", "plain", "chat"]


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Texts before a model's reply."""

    where: str
    """Name for messages."""
    question: str
    system: str = ""
    examples: Sequence[tuple[str, str]] = ()
    """Questions with their answers."""
    delimiter: str = " "
    """Text between a question and its answer, in plain form."""
    separator: str = "\n\n"
    """Text between examples, in plain form."""

    def plain(self) -> str:
        """The turns as a text."""
        shown = (f"{question}{self.delimiter}{answer}{self.separator}" for question, answer in self.examples)
        return "".join((self.system, *shown, self.question))

    def messages(self) -> list[dict[str, str]]:
        """The turns as messages."""
        turns = [("system", self.system)] if self.system else []
        turns += [turn for q, a in self.examples for turn in (("user", q), ("assistant", a))]
        return [{"role": role, "content": text} for role, text in [*turns, ("user", self.question)]]


class Prompt(NamedTuple):
    """A text that a model goes on from."""

    text: str
    specials: Mapping[str, int] | None = None
    """Special tokens by name, which the template of a chat wrote; None for plain text."""

    def encode(self, trained: TrainedModel, more: str = "") -> list[int]:
        """Tokens of the text with `more` behind it; of a chat with its special tokens, otherwise behind BOS."""
        text = self.text + more
        return (
            trained.encode(text) if self.specials is None else encode_rendered(trained.tokenizer, text, self.specials)
        )


def wants_chat(trained: TrainedModel, form: Form) -> bool:
    """True for the chat form. Raises ConfigError where it is asked for and the run has no chat template."""
    template = getattr(trained, "template", None)
    if form == "chat" and template is None:
        raise ConfigError(
            f"Run {trained.run} has no chat template",
            found="chat form",
            remedy="Take the plain form, or a run that was imported or trained with a template.",
        )
    return form != "plain" and template is not None


def make_prompts(trained: TrainedModel, turns: Sequence[Turns], *, chat: bool) -> list[Prompt]:
    """The prompt of each question. Raises ConfigError for special tokens inside a message, or a template that fails."""
    if not chat:
        return [Prompt(each.plain()) for each in turns]
    template: Any = getattr(trained, "template", None)
    specials = special_names(trained.tokenizer)
    jobs = []
    for each in turns:
        messages = each.messages()
        if typed := [name for name in specials for message in messages if name in message["content"]]:
            raise ConfigError(
                f"{each.where}: a message contains the name of a special token",
                found=typed[0],
                remedy="Remove it: the template writes these tokens.",
            )
        values = {**template.special_tokens, "messages": messages, "add_generation_prompt": True, "tools": None}
        jobs.append(Job(f"{each.where}, chat template", template.text, values, chat=True))
    return [Prompt(text, specials) for text in render(jobs)]


def encode_rendered(tokenizer: Tokenizer, text: str, names: Mapping[str, int]) -> list[int]:
    """Tokens of a text in which special tokens stand by name."""
    parts = re.split(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})", text) if names else [text]
    encoded = iter(tokenizer.encode_batch([part for part in parts if part not in names]))
    return [token for part in parts for token in ([names[part]] if part in names else next(encoded).tolist())]


def special_names(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens by name: those that a tokenizer.json adds, or of bytes."""
    content = json.loads(tokenizer.to_json())
    if content.get("kind") == "bytes":
        return {name: 256 + i for i, name in enumerate(content["specials"])}
    return {token["content"]: int(token["id"]) for token in content.get("added_tokens", ()) if token["special"]}
