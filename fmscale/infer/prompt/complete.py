"""Replies of a model to prompts: all generation for prompts and tasks goes through here."""

from collections.abc import Sequence

from fmscale.errors import ConfigError
from fmscale.infer.generate import Completion, generate
from fmscale.infer.load import TrainedModel
from fmscale.infer.sampling import Sampling


def complete(
    trained: TrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    ends: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    names: Sequence[str] = (),
    threads: int | None = None,
) -> list[list[Completion]]:
    """`samples` replies to each prompt; their text has no special tokens but those that `stop` names. `ends` are the
    tokens that end a reply, None for the run's own. Raises ConfigError for a prompt that leaves no room, by its name.
    """
    limit = trained.model.config.max_seq_len
    for number, prompt in enumerate(prompts):
        if len(prompt) + max_tokens > limit:
            raise ConfigError(
                f"The prompt of {names[number] if names else f'number {number}'} is too long",
                found=f"{len(prompt)} tokens and {max_tokens} new ones, the model reads {limit}",
                remedy="Take fewer examples, a shorter text, or a smaller max_tokens.",
            )
    tokenizer = trained.tokenizer
    unsaid = {token for name, token in tokenizer.specials.items() if not any(name in word for word in stop)}
    replies = generate(
        trained.model,
        prompts,
        samples=samples,
        max_tokens=max_tokens,
        sampling=sampling,
        eos=trained.ends if ends is None else ends,
        stop=stop,
        decode=lambda ids: tokenizer.decode([token for token in ids if token not in unsaid]),
        vocabulary=tokenizer.vocab_size,
        threads=threads,
    )
    return [replies[i : i + samples] for i in range(0, len(replies), samples)]
