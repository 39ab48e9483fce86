"""Generation: prompts are read packed, then each step adds a token to every sequence; ended ones make room."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fmscale.errors import ConfigError
from fmscale.infer.products import packed
from fmscale.infer.sampling import Sampling
from fmscale.infer.slots import Growth, Slots
from fmscale.infer.stream import TextStream
from fmscale.infer.threads import cpu_threads
from fmscale.models import Decoder

SLOTS = 16
"""Sequences that grow together."""

OnToken = Callable[[int, int | None, str], None]
"""Called with (number of the completion, token, text) as tokens come, and with (number, None, rest of the text) at a
sequence's end. The text is complete with the token, and empty without `decode`."""


@dataclass(kw_only=True)
class Completion:
    """Tokens that a model gave after a prompt."""

    tokens: list[int] = field(default_factory=list)
    """Token ids, without the end token; with the tokens of a stop string."""
    stop: Literal["eos", "stop", "length"] = "length"
    """Reason for the end: an end token, a stop string, or the limit."""
    end: int | None = None
    """The end token that came."""
    text: str = ""
    """Text before the stop string; only with `decode`."""
    logprobs: list[float] = field(default_factory=list)
    """Natural log of each token's probability, the end token's included, in the model's own distribution: of all its
    ids, at temperature 1, without a penalty. Only on request."""
    drawn_logprobs: list[float] = field(default_factory=list)
    """The same in the distribution that the token was drawn from; 0 at temperature 0."""


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int | Sequence[int],
    sampling: Sampling | None = None,
    samples: int = 1,
    eos: int | Sequence[int] | None = None,
    stop: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    min_tokens: int = 0,
    vocabulary: int | None = None,
    logprobs: bool = False,
    keys: Sequence[int] | None = None,
    shared: int = 0,
    slots: int = SLOTS,
    threads: int | None = None,
    on_token: OnToken = lambda number, token, text: None,
) -> list[Completion]:
    """The model's continuations: `samples` of the first prompt, then of the second, and so on.

    Tokens and log-probabilities of a completion depend on the model, its prompt, the settings of its sampling, its
    prompt's key, its number among the samples and `shared`: not on other prompts, their order, or `slots`.

    Args:
        model: on any device, in any type; it is in eval mode during the call.
        prompts: token ids of each prompt, at least one, of any lengths.
        max_tokens: new tokens of each sequence, or of each prompt's sequences.
        sampling: settings of the choice; None takes the likeliest token.
        samples: completions of each prompt, which is read once for all of them.
        eos: token or tokens that end a sequence; None lets all sequences run to `max_tokens`.
        stop: strings that end a sequence, also over the borders of tokens; they need `decode`.
        decode: the tokenizer's function from tokens to text.
        min_tokens: new tokens before which no token of `eos` is chosen.
        vocabulary: only ids below this are chosen: a model may have more rows than its tokenizer has ids.
        logprobs: True records the log-probabilities of all tokens.
        keys: number of each prompt for its draws; None numbers the prompts of the call.
        shared: number of tokens with which all prompts begin; they are read once.
        slots: sequences that grow together; it changes the memory, never the results.
        threads: CPU threads; None takes as many as the work keeps busy.
        on_token: called with every token as it comes, except end tokens, and at the end of each sequence.

    Raises ConfigError for a prompt that is empty, has ids beyond the vocabulary, or with `max_tokens` is longer
    than the model's max_seq_len, and for settings that contradict each other.
    """
    sampling = sampling or Sampling()
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
    ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    for name, value, fits in (
        ("samples", samples, samples >= 1),
        ("slots", slots, slots >= 1),
        ("min_tokens", min_tokens, 0 <= min_tokens <= min(limits, default=min_tokens)),
    ):
        if not fits:
            remedy = "Take 0 to max_tokens." if name == "min_tokens" else "Take 1 or more."
            raise ConfigError(f"{name} cannot be this", found=value, remedy=remedy)
    _check(model, prompts, limits, ends, stop, decode, keys, shared)
    queue = deque(
        Growth(number=prompt * samples + sample, prompt=prompt, sample=sample, tokens=tokens, limit=limits[prompt])
        for prompt, tokens in enumerate(prompts)
        for sample in range(samples)
    )
    if not queue:
        return []
    # the longest first: at the end few rows wait for the last one, and 64 completions of 12 to 96 tokens take 108 steps
    queue = deque(sorted(queue, key=lambda one: -one.limit))
    completions = [Completion() for _ in queue]
    rows = max(1, min(slots, len(queue)))
    capacity = max(len(prompt) + limit - 1 for prompt, limit in zip(prompts, limits, strict=True))
    for one in queue:
        one.key = one.prompt if keys is None else keys[one.prompt]
        one.text = None if decode is None else TextStream(decode, one.tokens, stop)
    shared = min(shared, min(map(len, prompts)) - 1)
    training = model.training
    model.eval()
    try:
        with packed(model), cpu_threads(model, rows, threads):
            state = Slots(model, rows, capacity, shared=shared, sampling=sampling, threads=threads)
            _grow(state, queue, completions, ends, min_tokens, vocabulary, logprobs, on_token)
    finally:
        model.train(training)
    return completions


def _grow(
    state: Slots,
    queue: deque[Growth],
    completions: list[Completion],
    ends: Sequence[int],
    min_tokens: int,
    vocabulary: int | None,
    logprobs: bool,
    on_token: OnToken,
) -> None:
    """Fill the completions of all sequences in the queue."""
    while True:
        state.fill(queue)
        chosen, drawn, own = state.choose(vocabulary, ends, min_tokens, logprobs=logprobs)
        for row, one in enumerate(state.growing):
            if one is None:
                continue
            completion, token = completions[one.number], chosen[row]
            if logprobs:
                completion.logprobs.append(own[row])
                completion.drawn_logprobs.append(drawn[row])
            if token in ends:
                completion.stop, completion.end = "eos", token
            else:
                completion.tokens.append(token)
                text = "" if one.text is None else one.text.add(token)
                completion.text += text
                completion.stop = "stop" if one.text is not None and one.text.stopped else "length"
                on_token(one.number, token, text)
            one.grown += 1
            if completion.stop != "length" or one.grown == one.limit:
                text = "" if one.text is None else one.text.end()
                completion.text += text
                state.end(row)
                on_token(one.number, None, text)
        if any(state.growing):
            state.step(last=not queue)
        elif not queue:
            return


def _check(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    ends: Sequence[int],
    stop: Sequence[str],
    decode: Callable[[Sequence[int]], str] | None,
    keys: Sequence[int] | None,
    shared: int,
) -> None:
    longest, V = model.config.max_seq_len, model.vocab_size
    for name, given in (("max_tokens", limits), ("keys", keys)):
        if given is not None and len(given) != len(prompts):
            found, remedy = f"{len(given)} for {len(prompts)} prompts", "Give a number for each prompt."
            raise ConfigError(
                f"{name} has another number of entries than there are prompts", found=found, remedy=remedy
            )
    if min(limits, default=1) < 1:
        raise ConfigError("There is nothing to generate", found=min(limits), remedy="Ask for 1 token or more.")
    if stop and (decode is None or not all(stop)):
        remedy = "Give `decode`, the tokenizer's function to text, and strings that are not empty."
        raise ConfigError("Stop strings cannot be found", found=list(stop), remedy=remedy)
    if ends and not 0 <= min(ends) <= max(ends) < V:
        remedy = f"Take ids from 0 to {V - 1}."
        raise ConfigError("An end token is none of the model's", found=list(ends), remedy=remedy)
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(
                f"Prompt {number} has no tokens", found=0, remedy="Begin with the BOS token, or with a text."
            )
        if not 0 <= min(prompt) <= max(prompt) < V:
            raise ConfigError(
                f"Prompt {number} has token ids that the model does not have",
                found=f"{min(prompt)} to {max(prompt)}, the vocabulary has {V}",
                remedy="Encode it with the tokenizer that the model was trained with.",
            )
        if len(prompt) + limits[number] > longest:
            room = longest - len(prompt)
            raise ConfigError(
                f"Prompt {number} and what is to follow are longer than the model's max_seq_len",
                found=f"{len(prompt)} + {limits[number]} > {longest}",
                remedy=f"Ask for at most {room} new tokens." if room > 0 else "Shorten the prompt.",
            )
        if list(prompt[:shared]) != list(prompts[0][:shared]) or len(prompt) < shared:
            raise ConfigError(
                f"Prompt {number} does not begin with the shared tokens",
                found=f"{list(prompt[:shared])[:8]}…, prompt 0 begins with {list(prompts[0][:shared])[:8]}…",
                remedy=f"Let all prompts have the same first {shared} tokens.",
            )
