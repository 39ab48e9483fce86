"""Log-likelihoods of continuations. Continuations of one context share its keys, and no result depends on the batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmscale.errors import ConfigError
from fmscale.infer.threads import cpu_threads
from fmscale.models import Decoder
from fmscale.models.shared import Group, SharedContexts, seen_by_tails

FORWARD_TOKENS = {"cpu": 2048}
"""Most tokens of a forward; 16,384 on other devices. On a CPU 8,192 took 1.14 times as long as 2,048 (2.5 M weights).
"""
ROWS = 128
"""Rows of logits that are held at once: 25 MB at a vocabulary of 49,152."""
LEAST_PREFIX = 32
"""Fewest tokens at the begin of neighbouring contexts that are read once."""
MULTIPLE = 64
"""Matrix products have a multiple of so many rows: MKL computes 1 to 3 rows of a thread with other bits than more."""


class Pair(NamedTuple):
    """Tokens of a context, one or more, and of a continuation."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Likelihood of a continuation."""

    nats: float
    """Log-probability of all its tokens."""
    greedy: bool
    """True if each token is the likeliest at its place; of equal logits the smaller id."""


class _Group(NamedTuple):
    """Tokens that are read for some pairs: their common context, or all tokens of a single pair."""

    tokens: tuple[int, ...]
    pairs: list[int]
    """Numbers of the pairs."""
    tails: list[tuple[int, ...]]
    """Tokens that each pair adds to the common context; empty for a single pair."""
    prefix: int = 0
    """First tokens that it has in common with its neighbours of the same `run`."""
    run: int = -1

    @property
    def size(self) -> int:
        """Tokens without the prefix."""
        return len(self.tokens) - self.prefix + sum(map(len, self.tails))


@torch.no_grad()
def loglikelihoods(
    model: Decoder,
    pairs: Sequence[Pair],
    *,
    batch: int | None = None,
    shared: bool = True,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda pairs: None,
) -> list[Likelihood]:
    """The likelihood of each pair's continuation behind its context.

    Args:
        model: on any device, in any type; probabilities are computed in fp32 and summed in fp64.
        pairs: contexts and continuations. A context that with its continuation is longer than the model reads loses
            its first tokens.
        batch: most contexts of one forward; it changes the memory, never a bit of the results (fp32 on a CPU).
        shared: read a context once for neighbouring pairs that have it in common, and once in a forward the examples
            with which contexts begin. Models with windows or soft-caps do not share.
        threads: CPU threads; None takes as many as a forward keeps busy.
        progress: called with the number of pairs of each forward.

    Raises ConfigError for an empty context or continuation, one that the model cannot read at once, or unknown ids.
    """
    limit = model.config.max_seq_len
    cut = [_checked(number, pair, limit, model.vocab_size) for number, pair in enumerate(pairs)]
    plain = all(getattr(module, name, None) is None for module in model.modules() for name in ("window", "softcap"))
    groups = list(_groups(cut, shared and plain))
    if shared and plain:
        groups = list(_with_prefixes(groups, cut))
    results: list[Likelihood | None] = [None] * len(cut)
    training = model.training
    model.eval()
    try:
        for part in _forwards(groups, batch, FORWARD_TOKENS.get(model.output.weight.device.type, 16384)):
            found = _score(model, part, cut, threads)
            for i, likelihood in found.items():
                results[i] = likelihood
            progress(len(found))
    finally:
        model.train(training)
    return [result for result in results if result is not None]


def rolling_windows(tokens: Sequence[int], first: int, limit: int) -> list[Pair]:
    """Pairs that together predict every token of a text once, each from up to `limit` tokens before it.

    The first token follows `first`, BOS or EOS. The next window begins where the last ended, with one token of context
    at least; the last window of a text reaches back as far as the model reads (lm-eval's rolling windows).
    """
    windows = [Pair((first,), tuple(tokens[:limit]))] if tokens else []
    done = min(limit, len(tokens))
    while done < len(tokens):
        end = min(done + limit, len(tokens))
        windows.append(Pair(tuple(tokens[end - limit - 1 : done]), tuple(tokens[done:end])))
        done = end
    return windows


def _checked(number: int, pair: Pair, limit: int, vocab_size: int) -> Pair:
    """The pair, its context cut from the left to the length that the model reads."""
    size = len(pair.continuation)
    if not pair.context or not size:
        which = "context" if not pair.context else "continuation"
        raise ConfigError(f"The {which} of pair {number} has no tokens", found=0, remedy="Begin with BOS, or a text.")
    if size > limit:
        raise ConfigError(
            f"The continuation of pair {number} is longer than the model's max_seq_len",
            found=f"{size} > {limit}",
            remedy="Shorten it, or score it as a rolling task.",
        )
    ids = (*pair.context, *pair.continuation)
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ConfigError(
            f"Pair {number} has token ids that the model does not have",
            found=f"{min(ids)} to {max(ids)}, the vocabulary has {vocab_size}",
            remedy="Encode it with the tokenizer that the model was trained with.",
        )
    return Pair(pair.context[-(limit + 1 - size) :], pair.continuation)


def _groups(pairs: Sequence[Pair], shared: bool) -> Iterator[_Group]:
    for context, members in groupby(range(len(pairs)), lambda i: pairs[i].context):
        numbers = list(members)
        if shared and len(numbers) > 1:
            yield _Group(context, numbers, [pairs[i].continuation[:-1] for i in numbers])
        else:
            yield from (_Group((*context, *pairs[i].continuation[:-1]), [i], []) for i in numbers)


def _with_prefixes(groups: Sequence[_Group], pairs: Sequence[Pair]) -> Iterator[_Group]:
    """The groups in runs of neighbours whose contexts begin alike, by half of the first context at least.

    A context keeps its last token, from whose hidden state the first token of a continuation is predicted.
    """
    first = 0
    while first < len(groups):
        common, last = pairs[groups[first].pairs[0]].context[:-1], first + 1
        while last < len(groups):
            other = pairs[groups[last].pairs[0]].context[:-1]
            both = sum(1 for _ in takewhile(bool, map(int.__eq__, common, other)))
            if both < max(LEAST_PREFIX, len(common) / 2):
                break
            common, last = common[:both], last + 1
        size = len(common) if last > first + 1 else 0
        yield from (group._replace(prefix=size, run=first) for group in groups[first:last])
        first = last


def _forwards(groups: Sequence[_Group], batch: int | None, most: int) -> Iterator[list[_Group]]:
    part: list[_Group] = []
    size = 0
    for group in groups:
        new = group.prefix if not part or part[-1].run != group.run else 0
        if part and (size + group.size + new > most or len(part) == batch):
            yield part
            part, size, new = [], 0, group.prefix
        part.append(group)
        size += group.size + new
    if part:
        yield part


def _score(
    model: Decoder, groups: Sequence[_Group], pairs: Sequence[Pair], threads: int | None
) -> dict[int, Likelihood]:
    """The likelihoods of the groups' pairs, by their numbers, from one forward."""
    device = model.output.weight.device
    prefixes = {group.run: group.tokens[: group.prefix] for group in groups if group.prefix}
    total = sum(group.size for group in groups) + sum(map(len, prefixes.values()))
    documents = [*prefixes.values(), *(group.tokens for group in groups if not group.prefix)]
    documents += [(0,) * (-total % MULTIPLE)] if total % MULTIPLE else []
    bounds = [*accumulate(map(len, documents), initial=0)]
    places = map(slice, bounds, bounds[1:])
    prefix_place = {run: next(places) for run in prefixes}
    tokens, positions = [*documents], [range(len(document)) for document in documents]
    place, layout = bounds[-1], []
    picks: list[tuple[int, int, int]] = []  # row of a hidden state, the token that follows, number of its pair

    def add(context: tuple[slice, ...], tails: Sequence[tuple[int, ...]]) -> slice:
        """Continuations of a context, behind all that the row has."""
        nonlocal place
        before = sum(part.stop - part.start for part in context)
        seen = seen_by_tails(before, list(map(len, tails))).to(device)
        here = slice(place, place + sum(map(len, tails)))
        tokens.extend(tails)
        positions.extend(range(before, before + len(tail)) for tail in tails)
        layout.append(Group(context, here, seen))
        place = here.stop
        return here

    for group in groups:
        if group.prefix:
            before = prefix_place[group.run]
            context: tuple[slice, ...] = (before, add((before,), [group.tokens[group.prefix :]]))
        else:
            context = (next(places),)
        last = context[-1].stop - 1
        tail = place
        if any(group.tails):
            add(context, group.tails)
        for number in group.pairs:
            continuation = pairs[number].continuation
            rows = [*range(last + 1 - len(continuation), last + 1)]
            if group.tails:
                rows = [last, *range(tail, tail + len(continuation) - 1)]
                tail += len(continuation) - 1
            picks += [(row, token, number) for row, token in zip(rows, continuation, strict=True)]
    shared = SharedContexts(
        layers=len(model.layers), documents=torch.tensor(bounds, dtype=torch.int32, device=device), size=bounds[-1],
        groups=layout, positions=torch.tensor(list(chain.from_iterable(positions)), device=device),
    )  # fmt: skip
    with cpu_threads(model, place, threads):
        row_of_tokens = torch.tensor([list(chain.from_iterable(tokens))], device=device)
        nats, greedy = _follow(model, model(row_of_tokens, cache=shared)[0], np.array(picks))
    scored = sorted({number for _, _, number in picks})
    return {i: Likelihood(nats=float(nats[i]), greedy=bool(greedy[i])) for i in scored}


def _follow(model: Decoder, hidden_ND: Tensor, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of all tokens of each pair, and whether each token is the likeliest, by the pair's number."""
    wanted, place = np.unique(picks[:, 0], return_inverse=True)
    nats = np.empty(len(picks))
    likeliest = np.empty(len(picks), dtype=bool)
    for first in range(0, len(wanted), ROWS):
        rows = torch.from_numpy(wanted[first : first + ROWS])
        padded = torch.cat((rows, rows[-1:].expand(-len(rows) % MULTIPLE)))
        logits = model.head(hidden_ND[padded.to(hidden_ND.device)]).float()
        here = np.flatnonzero((place >= first) & (place < first + ROWS))
        row = torch.from_numpy(place[here] - first).to(logits.device)
        token = torch.from_numpy(picks[here, 1]).to(logits.device)
        nats[here] = logits.log_softmax(-1)[row, token].double().cpu().numpy()
        likeliest[here] = (logits.argmax(-1)[row] == token).cpu().numpy()
    count = int(picks[:, 2].max()) + 1
    misses = np.bincount(picks[:, 2], weights=~likeliest, minlength=count)
    return np.bincount(picks[:, 2], weights=nats, minlength=count), misses == 0
