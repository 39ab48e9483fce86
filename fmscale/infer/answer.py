"""Answers to conversations: a prompt by the run's chat template, and the answer's text as it comes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fmscale.data.chat.render import RecordRenderer
from fmscale.data.chat.template import Rendered
from fmscale.errors import ConfigError
from fmscale.infer.generate import generate
from fmscale.infer.load import TrainedModel
from fmscale.infer.sampling import Sampling

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(kw_only=True)
class ChatReply:
    """Text that a model gave to a conversation."""

    text: str = ""
    """The answer, without the token or the text that ended it."""
    tokens: int = 0
    """Tokens that the model made for it."""
    end: Literal["stop", "length", "cancelled"] = "cancelled"
    """Reason for the end: the turn's end token or a stop text, the limit, or the caller."""


class ChatModel:
    """A run's model with its chat template. Threads must not share it."""

    def __init__(self, trained: TrainedModel) -> None:
        """Raises ConfigError for a run without a chat template, DataError for a template whose turns have no end."""
        if trained.template is None:
            raise ConfigError(
                "The run has no chat template",
                found=trained.run,
                remedy="`fmscale generate` continues plain text. `fmscale import` takes a template with a model, and a "
                "run on data that `fmscale dataset render` made has the template of this data.",
            )
        self.trained = trained
        self._renderer = RecordRenderer(trained.template, trained.tokenizer, bos=trained.bos, eos=trained.eos)
        self.ends = [token for token in {*trained.ends, self._renderer.end} if token is not None]
        """Tokens that end an answer."""

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return self.trained.model.config.max_seq_len

    def rendered(self, messages: Sequence[Message]) -> Rendered:
        """Text of a conversation up to the answer; names of special tokens in a message are plain text. Raises
        DataError for messages that the template refuses.
        """
        return self._renderer.marked(messages, add_generation_prompt=True)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of `rendered`."""
        return [int(token) for token in self._renderer.prompt(messages)]

    def fitted(self, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
        """Tokens of a conversation that leave `room` tokens of the context, and the number of messages left out: the
        oldest of the user with all that follows them, not the system prompt.

        Raises ConfigError if the last message alone is too long.
        """
        kept = list(messages)
        while len(ids := self.prompt(kept)) + room > self.context:
            asked = [number for number, message in enumerate(kept) if message["role"] == "user"]
            if len(asked) < 2:
                raise ConfigError(
                    "The message is longer than the model's context",
                    found=f"{len(ids)} tokens and {room} for the answer, of {self.context}",
                    remedy="Shorten it, or the system prompt.",
                )
            del kept[asked[0] : asked[1]]
        return ids, len(messages) - len(kept)

    def answers(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        count: int = 1,
        threads: int | None = None,
        on_text: Callable[[int, str], None] = lambda number, text: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[ChatReply]:
        """Answers to the prompt, grown together.

        Args:
            prompt: tokens from `prompt` or `fitted`.
            max_tokens: most new tokens of an answer.
            sampling: settings of the choice.
            stop: texts that end an answer and are no part of it.
            count: answers.
            threads: as in `generate`.
            on_text: called with (number of the answer, text) as whole characters come.
            cancelled: asked before each token; True ends all answers where they are.
        """
        tokenizer = self.trained.tokenizer
        replies = [ChatReply() for _ in range(count)]

        def add(number: int, token: int | None, text: str) -> None:
            if cancelled():
                raise _Cancelled
            replies[number].tokens += token is not None
            replies[number].text += text
            if text:
                on_text(number, text)

        try:
            results = generate(
                self.trained.model,
                [prompt],
                samples=count,
                max_tokens=max_tokens,
                sampling=sampling,
                eos=self.ends,
                stop=stop,
                decode=tokenizer.decode,
                vocabulary=tokenizer.vocab_size,
                threads=threads,
                on_token=add,
            )
        except _Cancelled:
            return replies
        for reply, result in zip(replies, results, strict=True):
            reply.end = "length" if result.stop == "length" else "stop"
        return replies


class _Cancelled(Exception):
    """Ends a generation from its callback."""
