"""Replies of a model to prompts: all generation for prompts and tasks goes through here."""

from collections.abc import Sequence
from typing import NamedTuple

from fmscale.errors import ConfigError
from fmscale.infer.generate import generate
from fmscale.infer.load import TrainedModel
from fmscale.infer.prompt.forms import special_names
from fmscale.infer.sampling import Sampling


class Reply(NamedTuple):
    """A model's continuation of a prompt."""

    text: str
    """Text up to the first stop string, without special tokens."""
    tokens: list[int]
    """Tokens that were generated, without EOS."""
    stop: str
    """`eos`, `length` or `stop`, a stop string."""


def complete(
    trained: TrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    samples: int = 1,
    names: Sequence[str] = (),
    threads: int | None = None,
) -> list[list[Reply]]:
    """`samples` replies to each prompt. Raises ConfigError for a prompt that leaves no room, by its name."""
    limit = trained.model.config.max_seq_len
    for number, prompt in enumerate(prompts):
        if len(prompt) + max_tokens > limit:
            raise ConfigError(
                f"The prompt of {names[number] if names else f'number {number}'} is too long",
                found=f"{len(prompt)} tokens and {max_tokens} new ones, the model reads {limit}",
                remedy="Take fewer examples, a shorter text, or a smaller max_tokens.",
            )
    results = generate(
        trained.model,
        [prompt for prompt in prompts for _ in range(samples)],
        max_tokens=max_tokens,
        sampling=sampling,
        eos=trained.eos,
        vocabulary=trained.tokenizer.vocab_size,
        threads=threads,
    )
    named = special_names(trained.tokenizer)
    unsaid = {token for name, token in named.items() if not any(name in word for word in stop)}
    replies = []
    for number, result in enumerate(results):
        before = list(prompts[number // samples])
        known = trained.tokenizer.decode(before)
        said = [token for token in result.tokens if token not in unsaid]
        text = trained.tokenizer.decode([*before, *said])[len(known) :]
        ends = [place for word in stop if (place := text.find(word)) >= 0]
        cut = min(ends, default=len(text))
        replies.append(Reply(text[:cut], result.tokens, "stop" if ends else result.stop))
    return [replies[i : i + samples] for i in range(0, len(replies), samples)]
