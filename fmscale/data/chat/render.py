"""A record of messages as tokens, and the tokens of them that are trained.

A conversation is rendered once and tokenised whole. The assistant's turns are the template's `{% generation %}` blocks,
or lie between the rendering up to a turn with the generation prompt and the rendering with it, which must be a
beginning of the whole; where a template drops earlier turns' thinking it is none, and each turn becomes a text. A turn
ends with the special token that the model stops at, and is trained with it.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from fmscale.data.chat.formats import common_length
from fmscale.data.chat.template import RefusedMessages, Rendered, Renderer, TemplateFault
from fmscale.data.tokenizers.protocol import Tokenizer, names_of
from fmscale.data.tokenizers.tokenizer import frame
from fmscale.errors import ConfigError, DataError
from fmscale.store.datasets.templates import ChatTemplate

PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


class LeftOut(Exception):
    """A record that gives no tokens to train: `reason` is the word under which it is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Choices of a rendering."""

    trained: Literal["all", "last"] = "all"
    """Turns of the assistant that are trained."""
    specials: Literal["text", "refuse"] = "text"
    """Special tokens that users typed: encode them as text, or leave the record out."""
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    """Texts of more than `max_tokens`: end the job, leave the record out, or cut their end off."""
    max_tokens: int | None = None
    """Most tokens of a text."""


class Tokens(NamedTuple):
    """The texts of a record."""

    tokens: np.ndarray
    """Ids of all texts, one behind the other."""
    pieces: list[int]
    """Tokens of each text."""
    trained: np.ndarray
    """bool for each token."""
    notes: tuple[str, ...]
    """Words that are counted: `typed` special tokens, `cut` texts."""


class Text(NamedTuple):
    """A text before it is tokenised."""

    rendered: Rendered
    spans: list[tuple[int, int]]
    """Characters that are trained."""
    plain: bool = False
    """True for a text without a template: BOS comes before it, and EOS behind an answer."""


class NoEnd(TemplateFault):
    """A turn of the assistant without an end token."""


class RecordRenderer:
    """Makes tokens of records of messages. Threads must not share it."""

    def __init__(
        self,
        template: ChatTemplate | None,
        tokenizer: Tokenizer,
        *,
        bos: int | None = None,
        eos: int | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`bos` and `eos` stand around plain texts. Raises TemplateFault for a template that is none, or whose
        assistant's turn has no end token.
        """
        self._renderer = None if template is None else Renderer(template)
        self._tokenizer = tokenizer
        self._names = names_of(tokenizer.specials)
        self._bos, self._eos = bos, eos
        self._policy = policy or Policy()
        self.end = eos
        """Id of the token that ends an answer."""
        if self._renderer:
            with suppress(RefusedMessages, LeftOut):  # a template may want other messages
                text = self._dialogue(PROBE, None, [1])[-1]
                self.end = tokenizer.specials[self._end_of(text.rendered, text.spans[-1][1])]

    def tokens(self, record: Mapping[str, Any], shape: str) -> Tokens:
        """The texts of a record (columns of `formats.SCHEMA`) of this shape: 1 for a chat, unless its template forgets,
        for a completion and for a prompt; 2 for a pair, k for a ranking.

        Raises LeftOut; TemplateFault for a template that loops, DataError for a text that is too long.
        """
        context = [json.loads(text) for text in record["messages"]]
        answers = [[json.loads(text) for text in side] for side in record["answers"] or ()]
        tools = None if record["tools"] is None else json.loads(record["tools"])
        try:
            if shape == "chat":
                texts = self._dialogue(context, tools, self._chosen(context, 0))
            elif shape == "prompts":
                texts = [self._prompt(context, tools)]
            else:
                texts = [self._answered(context, side, tools) for side in answers]
        except RefusedMessages as error:
            raise LeftOut("template", f"{error.cause}: {error.found}") from error
        except NoEnd as error:
            raise LeftOut("no end token", f"{error.cause}: {error.found}") from error
        return self._encoded(texts, wanted=shape != "prompts")

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> np.ndarray:
        """Ids of a conversation up to the assistant's answer; special tokens that users typed are text. Raises
        RefusedMessages, TemplateFault.
        """
        return self._one(self._prompt(messages, tools))[0]

    def marked(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, *, add_generation_prompt: bool = False
    ) -> Rendered:
        """The text of messages with its places. Raises RefusedMessages, TemplateFault."""
        if self._renderer is None:
            raise TemplateFault(
                "The records are messages, and no chat template renders them",
                found="no template",
                remedy="Give --template FILE.jinja, or --with a run that was imported with its template.",
            )
        return self._renderer.marked(messages, self._names, add_generation_prompt=add_generation_prompt, tools=tools)

    def _prompt(self, context: Sequence[Any], tools: Any) -> Text:
        if isinstance(context[0], str):
            return self._plain(context[0], [])
        return Text(self.marked(context, tools, add_generation_prompt=True), [])

    def _answered(self, context: list[Any], side: list[Any], tools: Any) -> Text:
        """Context and an answer as one text."""
        if not isinstance(context[0], str):
            messages = [*context, *side]
            return self._dialogue(messages, tools, self._chosen(messages, len(context)))[-1]
        if self._eos is None:
            raise ConfigError(
                "A plain answer needs a token that ends it, and the run has no EOS",
                remedy="Give the records as messages, or take a tokenizer with an EOS token.",
            )
        return self._plain(context[0] + side[0], [(len(context[0]), len(context[0] + side[0]))])

    def _plain(self, text: str, spans: list[tuple[int, int]]) -> Text:
        typed = frozenset(found.start() for found in self._names.finditer(text))
        return Text(Rendered(text=text, typed=typed, generated=()), spans, plain=True)

    def _chosen(self, messages: Sequence[Any], first: int) -> list[int]:
        """Messages that are trained, of those from `first` on."""
        turns = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        turns = turns[-1:] if self._policy.trained == "last" else turns
        chosen = [i for i in turns if messages[i].get("weight") != 0]
        if not chosen:
            raise LeftOut("no trained token", "no turn of the assistant has a weight")
        return chosen

    def _dialogue(self, messages: Sequence[Any], tools: Any, chosen: list[int]) -> list[Text]:
        """The conversation with its trained spans; where its template forgets, a text a chosen turn."""
        whole = self.marked(messages, tools)
        if spans := list(whole.generated):
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            if len(spans) == len(turns):
                spans = [span for i, span in zip(turns, spans, strict=True) if i in chosen]
            elif len(chosen) < len(turns):
                raise LeftOut("template", f"{len(spans)} generation blocks for {len(turns)} turns of the assistant")
            self._end_of(whole, spans[-1][1])
            return [Text(whole, spans)]
        texts = [self._turn(messages, tools, i, whole.text) for i in chosen]
        if all(whole.text.startswith(text.rendered.text[: text.spans[0][1]]) for text in texts):
            return [Text(whole, [text.spans[0] for text in texts])]
        return texts

    def _turn(self, messages: Sequence[Any], tools: Any, i: int, whole: str) -> Text:
        """The conversation up to message `i`, with the span of it that a model writes."""
        turn = self.marked(messages[: i + 1], tools)
        head = self.marked(messages[:i], tools, add_generation_prompt=True).text
        begin = common_length(head, turn.text)
        if begin < len(head) and begin < len(self.marked(messages[:i], tools).text.rstrip()):
            raise LeftOut("template", f"message {i} changes the text of earlier messages")
        stop = len(turn.text.rstrip())
        self._end_of(turn, stop)
        # A template may end the whole text with a token of its own, behind the end of the last turn.
        same = common_length(turn.text, whole)
        ends = [found for found in self._names.finditer(turn.text, begin, stop) if found.start() not in turn.typed]
        while len(ends) > 1 and ends[-1].end() > same and not turn.text[ends[-2].end() : ends[-1].start()].strip():
            stop = ends[-2].end()
            ends.pop()
        return Text(turn, [(begin, stop)])

    def _end_of(self, rendered: Rendered, stop: int) -> str:
        """The special token that ends a turn. Raises NoEnd."""
        turn = rendered.text[:stop].rstrip()
        names = tuple(self._tokenizer.specials)
        end = max((name for name in names if turn.endswith(name)), key=len, default="")
        if not end or len(turn) - len(end) in rendered.typed:
            raise NoEnd(
                "The assistant's turn has no end token, so the model would never learn to stop",
                found=f"the turn ends with {turn[-40:]!r}",
                remedy="Give a template (--template) that ends the turn with a special token of the tokenizer, such as "
                f"{', '.join(names[:5]) or 'none: take another tokenizer'}.",
            )
        return end

    def _encoded(self, texts: Sequence[Text], *, wanted: bool) -> Tokens:
        """Tokens of texts; each must have a trained token if `wanted`."""
        ids, masks, notes = [], [], list[str]()
        most = self._policy.max_tokens
        for text in texts:
            if text.rendered.typed:
                notes.append("typed")
                if self._policy.specials == "refuse":
                    at = min(text.rendered.typed)
                    raise LeftOut("special tokens typed", repr(text.rendered.text[at : at + 40]))
            tokens, mask = self._one(text)
            if most is not None and len(tokens) > most:
                if self._policy.too_long == "refuse":
                    raise DataError(
                        "A text is longer than --max-tokens",
                        found=f"{len(tokens)} tokens: {text.rendered.text[:80]!r}",
                        remedy="Give --too-long drop or cut, or more --max-tokens.",
                    )
                notes.append("cut")
                if self._policy.too_long == "drop":
                    raise LeftOut("too long", f"{len(tokens)} tokens")
                tokens, mask = tokens[:most], mask[:most]
            if wanted and not mask[1:].any():
                raise LeftOut("no trained token", f"none of {len(tokens)} tokens")
            ids.append(tokens)
            masks.append(mask)
        return Tokens(np.concatenate(ids), [len(one) for one in ids], np.concatenate(masks), tuple(notes))

    def _one(self, text: Text) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, and the mask of those that are trained."""
        ids, places = self._tokenizer.encode_rendered(text.rendered.text, text.rendered.typed)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for begin, stop in text.spans:
            mask |= (places[:, 1] > begin) & (places[:, 0] < stop)
        if text.plain:
            first, last = int(self._bos is not None), int(bool(text.spans))
            ids = frame(ids, self._bos, self._eos if last else None)
            mask = np.concatenate((np.zeros(first, np.bool_), mask, np.ones(last, np.bool_)))
        return ids, mask
