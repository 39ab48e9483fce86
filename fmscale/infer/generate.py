"""Generation: a packed forward reads the prompts, then each step adds a token to every sequence from a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fmscale.errors import ConfigError
from fmscale.infer.sampling import Sampling, choose
from fmscale.infer.threads import cpu_threads
from fmscale.models import Decoder
from fmscale.models.cache import KVCache

BATCH = 16
"""Sequences that grow together."""

OnToken = Callable[[int, int | None], None]
"""Called with (number of the prompt, token) as tokens come, and with (number, None) at a sequence's end."""


@dataclass(kw_only=True)
class Completion:
    """Tokens that a model gave after a prompt."""

    tokens: list[int] = field(default_factory=list)
    """Token ids, without the EOS."""
    stop: Literal["eos", "length"] = "length"
    """Reason for the end: the model's EOS, or the limit."""


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    eos: int | None = None,
    vocabulary: int | None = None,
    batch: int = BATCH,
    threads: int | None = None,
    on_token: OnToken = lambda number, token: None,
) -> list[Completion]:
    """The model's continuation of each prompt, in at most `max_tokens` tokens.

    Args:
        model: on any device, in any type; it is in eval mode during the call.
        prompts: token ids of each prompt, at least one, of any lengths.
        max_tokens: new tokens of each sequence.
        sampling: settings of the choice; None takes the likeliest token.
        eos: token that ends a sequence; None lets all sequences run to `max_tokens`.
        vocabulary: only ids below this are chosen: a model may have more rows than its tokenizer has ids.
        batch: sequences that grow together; it changes the memory, never the results.
        threads: CPU threads; None takes as many as the work keeps busy.
        on_token: called with every token as it comes, except `eos`, and at the end of each sequence.

    Raises ConfigError for a prompt that is empty, has ids beyond the vocabulary, or with `max_tokens` is longer
    than the model's max_seq_len.
    """
    _check(model, prompts, max_tokens)
    sampling = sampling or Sampling()
    completions = [Completion() for _ in prompts]
    training = model.training
    model.eval()
    try:
        for first in range(0, len(prompts), batch):
            part = range(first, min(first + batch, len(prompts)))
            with cpu_threads(model, len(part), threads):
                _grow(model, prompts, part, max_tokens, sampling, eos, vocabulary, threads, completions, on_token)
    finally:
        model.train(training)
    return completions


def _grow(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    part: range,
    max_tokens: int,
    sampling: Sampling,
    eos: int | None,
    vocabulary: int | None,
    threads: int | None,
    completions: list[Completion],
    on_token: OnToken,
) -> None:
    """Fill the completions of the prompts in `part`."""
    weight = model.output.weight
    longest = max(len(prompts[i]) for i in part)
    cache = KVCache(model.config, len(part), longest + max_tokens - 1, dtype=weight.dtype, device=weight.device)
    alive = list(part)
    generators = dict(zip(part, sampling.generators(part.start, len(part)), strict=True))
    with cpu_threads(model, sum(len(prompts[i]) for i in part), threads):
        hidden_BD = _read(model, [prompts[i] for i in part], cache)
    for length in range(1, max_tokens + 1):
        logits_BV = model.head(hidden_BD)[:, :vocabulary]
        chosen_B = choose(logits_BV, sampling, [generators[i] for i in alive])
        survivors = []
        for row, (i, token) in enumerate(zip(alive, chosen_B.tolist(), strict=True)):
            if token == eos:
                completions[i].stop = "eos"
            else:
                completions[i].tokens.append(token)
                on_token(i, token)
            if token == eos or length == max_tokens:
                on_token(i, None)
            else:
                survivors.append(row)
        if not survivors:
            return
        if len(survivors) < len(alive):
            rows = torch.tensor(survivors, device=weight.device)
            cache.keep(rows)
            alive, chosen_B = [alive[row] for row in survivors], chosen_B[rows]
        hidden_BD = model(chosen_B[:, None], cache=cache)[:, 0]


def _read(model: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Read the prompts into the cache; return the hidden state (B, D) of each prompt's last token."""
    device = cache.keys.device
    ends = list(accumulate((len(prompt) for prompt in prompts), initial=0))
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    hidden_BTD = model(tokens[None], cu_seqlens=cu_seqlens, cache=cache)
    last: Tensor = hidden_BTD[0, cu_seqlens[1:].long() - 1]
    return last


def _check(model: Decoder, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    limit = model.config.max_seq_len
    if max_tokens < 1:
        raise ConfigError("There is nothing to generate", found=max_tokens, remedy="Ask for 1 token or more.")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(
                f"Prompt {number} has no tokens", found=0, remedy="Begin with the BOS token, or with a text."
            )
        if not 0 <= min(prompt) <= max(prompt) < model.vocab_size:
            raise ConfigError(
                f"Prompt {number} has token ids that the model does not have",
                found=f"{min(prompt)} to {max(prompt)}, the vocabulary has {model.vocab_size}",
                remedy="Encode it with the tokenizer that the model was trained with.",
            )
        if len(prompt) + max_tokens > limit:
            room = limit - len(prompt)
            raise ConfigError(
                f"Prompt {number} and what is to follow are longer than the model's max_seq_len",
                found=f"{len(prompt)} + {max_tokens} > {limit}",
                remedy=f"Ask for at most {room} new tokens." if room > 0 else "Shorten the prompt.",
            )
