"""A question with its examples, as plain text or by the run's chat template, and its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fmscale.data.tokenizers.protocol import names_of
from fmscale.errors import DataError
from fmscale.infer.answer import ChatModel
from fmscale.infer.load import TrainedModel

Form = Literal["auto", "plain", "chat"]


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Texts before a model's reply."""

    where: str
    """Name for messages."""
    question: str
    system: str = ""
    examples: Sequence[tuple[str, str]] = ()
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
    typed: frozenset[int] | None = None
    """Places of special tokens' names in a chat that are text; None for plain text, in which all are."""

    def encode(self, trained: TrainedModel, more: str = "") -> list[int]:
        """Tokens of the text with `more` behind it; of a chat with its special tokens, otherwise behind BOS."""
        text = self.text + more
        if self.typed is None:
            return trained.encode(text)
        names = names_of(trained.tokenizer.specials).finditer(more)
        typed = self.typed.union(len(self.text) + found.start() for found in names)
        return [int(token) for token in trained.tokenizer.encode_rendered(text, typed)[0]]


def chat_of(trained: TrainedModel, form: Form) -> ChatModel | None:
    """The model with its chat template for the chat form, None for the plain form. Raises as ChatModel."""
    return None if form == "plain" or (form == "auto" and trained.template is None) else ChatModel(trained)


def make_prompts(turns: Sequence[Turns], chat: ChatModel | None) -> list[Prompt]:
    """The prompt of each question. Raises DataError for messages that the chat template refuses, or a template that
    fails.
    """
    if chat is None:
        return [Prompt(each.plain()) for each in turns]
    prompts = []
    for each in turns:
        try:
            rendered = chat.rendered(each.messages())
        except DataError as error:
            raise DataError(f"{each.where}: {error.cause}", found=error.found, remedy=error.remedy) from error
        prompts.append(Prompt(rendered.text, rendered.typed))
    return prompts
