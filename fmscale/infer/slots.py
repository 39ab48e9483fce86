"""Rows of a cache in which sequences grow together: a row that has ended takes the next sequence.

A prompt is read once for its samples, and a prefix that all prompts share is read once: other rows copy the keys.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from fmscale.errors import DataError
from fmscale.infer.products import row_multiple
from fmscale.infer.sampling import Sampling, choose, penalised
from fmscale.infer.stream import TextStream
from fmscale.infer.threads import cpu_threads
from fmscale.models import Decoder
from fmscale.models.cache import KVCache, padded_rows

READ_TOKENS = 8192
"""Most tokens of prompts that one forward reads, unless a single prompt is longer."""
REFILL = 8
"""Rows are refilled once 1/REFILL of them are free: prompts that are read together take fewer forwards."""


@dataclass(kw_only=True, eq=False)
class Growth:
    """A sequence: a sample of a prompt, in a row or before it."""

    number: int
    """Place among all completions."""
    prompt: int
    """Number of the prompt; the samples of a prompt come one after another."""
    sample: int
    """Number among the prompt's samples."""
    tokens: Sequence[int]
    limit: int
    """Most new tokens."""
    key: int = 0
    """The prompt's number for draws."""
    draws: list[float] = field(default_factory=list)
    """Uniform number for each new token, once it is in a row."""
    text: TextStream | None = None
    """Text of the new tokens, where one is asked for."""
    grown: int = 0
    """New tokens so far."""


class Slots:
    """The rows, each with a growing sequence or free."""

    def __init__(
        self, model: Decoder, rows: int, capacity: int, *, shared: int, sampling: Sampling, threads: int | None
    ) -> None:
        weight = model.output.weight
        self.model, self.sampling, self.threads, self.shared = model, sampling, threads, shared
        self.multiple = row_multiple(model)
        self.cache = KVCache(model.config, rows, capacity, dtype=weight.dtype, device=weight.device)
        self.cache.idle = set(range(rows))
        self.cache.padding = self.multiple
        self.growing: list[Growth | None] = [None] * rows
        self._prompts: list[int | None] = [None] * rows
        self._last_D: dict[int, Tensor] = {}
        self._hidden_BD = weight.new_zeros(self.cache.padded, weight.shape[1])
        seen = rows if sampling.repetition != 1 else 0
        self._seen_BV = torch.zeros(seen, weight.shape[0], dtype=torch.bool, device=weight.device)

    def fill(self, queue: deque[Growth]) -> None:
        """Place sequences from the queue into free rows, and read the prompts that no row has."""
        free = [row for row, one in enumerate(self.growing) if one is None]
        if not queue or len(free) * REFILL < len(self.growing):
            return
        known = {prompt: row for row, prompt in enumerate(self._prompts) if prompt is not None}
        free.sort(key=lambda row: self._prompts[row] != queue[0].prompt)  # these have the keys already
        reads: list[tuple[int, Growth]] = []
        copies: list[tuple[int, Growth]] = []
        for row in free[: len(queue)]:
            one = queue.popleft()
            self.growing[row] = one
            if one.prompt in known:
                copies.append((row, one))
            else:
                reads.append((row, one))
                known[one.prompt] = row
        fresh = {one.prompt for _, one in reads}
        # rows that are read into may have keys that others copy: the copies come first
        self._place([(row, one) for row, one in copies if one.prompt not in fresh], known)
        self._read(reads)
        self._place([(row, one) for row, one in copies if one.prompt in fresh], known)
        self._last_D = {p: last for p, last in self._last_D.items() if queue and p == queue[0].prompt}

    def _place(self, placed: list[tuple[int, Growth]], known: dict[int, int]) -> None:
        for row, one in placed:
            if self._prompts[row] != one.prompt:
                self.cache.copy(known[one.prompt], row, len(one.tokens))
            self._start(row, one, self._last_D[one.prompt])

    def _start(self, row: int, one: Growth, last_D: Tensor) -> None:
        self._prompts[row] = one.prompt
        if self.sampling.temperature > 0:
            one.draws = self.sampling.draws(one.key, one.sample, one.limit).tolist()
        self.cache.lengths[row] = len(one.tokens)
        self.cache.idle.discard(row)
        self._hidden_BD[row] = last_D
        if len(self._seen_BV):
            self._seen_BV[row] = False
            self._seen_BV[row, torch.tensor(one.tokens, device=self._seen_BV.device)] = True

    def _read(self, reads: list[tuple[int, Growth]]) -> None:
        """Read prompts into rows, behind the shared prefix."""
        if reads and self.shared:
            source = next((row for row, prompt in enumerate(self._prompts) if prompt is not None), None)
            if source is None:
                source = reads[0][0]
                self.cache.lengths[source] = 0
                self._forward([source], [reads[0][1].tokens[: self.shared]])
            for row, _ in reads:
                if row != source and self._prompts[row] is None:
                    self.cache.copy(source, row, self.shared)
        while reads:
            sizes = accumulate(len(one.tokens) for _, one in reads)
            count = max(1, sum(size <= READ_TOKENS for size in sizes))
            part, reads = reads[:count], reads[count:]
            for row, _ in part:
                self.cache.lengths[row] = self.shared
            last_BD = self._forward([row for row, _ in part], [one.tokens[self.shared :] for _, one in part])
            for (row, one), last_D in zip(part, last_BD, strict=True):
                self._last_D[one.prompt] = last_D
                self._start(row, one, last_D)

    def _forward(self, rows: list[int], texts: list[Sequence[int]]) -> Tensor:
        """Read texts into rows, packed; the hidden state (texts, D) of each last token."""
        ends = list(accumulate(map(len, texts), initial=0))
        device = self._hidden_BD.device
        tokens = torch.zeros(padded_rows(ends[-1], self.multiple), dtype=torch.int64)
        tokens[: ends[-1]] = torch.tensor([token for text in texts for token in text])
        cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
        with cpu_threads(self.model, ends[-1], self.threads):
            hidden_BTD = self.model(tokens[None].to(device), cu_seqlens=cu_seqlens, cache=self.cache.at(rows))
        last: Tensor = hidden_BTD[0, cu_seqlens[1:].long() - 1]
        return last

    def choose(
        self, vocabulary: int | None, banned: Sequence[int], least: int, *, logprobs: bool
    ) -> tuple[list[int], list[float], list[float]]:
        """The next token of each row, and its log-probabilities: in the distribution that it is drawn from, and in the
        model's own; both empty without `logprobs`. Tokens `banned` are not chosen before `least` new tokens.
        """
        rows = len(self.growing)
        if not bool(self._hidden_BD.isfinite().all()):
            remedy = "Take an earlier checkpoint, or fp32 in place of bf16."
            raise DataError("The model computes numbers that are not finite", found="NaN or infinity", remedy=remedy)
        whole_BV = self.model.head(self._hidden_BD)[:rows]
        logits_BV = whole_BV[:, :vocabulary]
        if len(self._seen_BV):
            logits_BV = penalised(logits_BV, self._seen_BV[:, :vocabulary], self.sampling.repetition)
        early = [row for row, one in enumerate(self.growing) if one is not None and one.grown < least]
        if early and banned:
            logits_BV = logits_BV.clone()
            logits_BV[torch.tensor(early)[:, None], torch.tensor(banned)] = -torch.inf
        draws_B = None
        if self.sampling.temperature > 0:
            numbers = [0.5 if one is None else one.draws[one.grown] for one in self.growing]
            draws_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)
        self._chosen_B, drawn_B = choose(logits_BV, self.sampling, draws_B)
        if len(self._seen_BV):
            self._seen_BV.scatter_(1, self._chosen_B[:, None], True)
        own: list[float] = []
        if logprobs:
            own = whole_BV.float().log_softmax(-1).gather(1, self._chosen_B[:, None])[:, 0].tolist()
        return self._chosen_B.tolist(), drawn_B.tolist() if logprobs else [], own

    def end(self, row: int) -> None:
        """Free a row. Its prompt's keys stay until another prompt takes the row."""
        self.growing[row] = None
        self.cache.idle.add(row)

    def step(self, *, last: bool) -> None:
        """Add the chosen tokens to their rows. `last`: nothing waits, so that free rows may go."""
        live = [row for row, one in enumerate(self.growing) if one is not None]
        if last and 4 * padded_rows(len(live), self.multiple) <= 3 * self.cache.padded:
            self._keep(live)
        tokens = torch.zeros(self.cache.padded, 1, dtype=torch.int64, device=self._hidden_BD.device)
        tokens[: len(self.growing), 0] = self._chosen_B
        self._hidden_BD = self.model(tokens, cache=self.cache)[:, 0]

    def _keep(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self._chosen_B.device)
        self.cache.keep(rows)
        self.growing = [self.growing[row] for row in rows]
        self._prompts = [self._prompts[row] for row in rows]
        self._chosen_B = self._chosen_B[index]
        self._seen_BV = self._seen_BV[index] if len(self._seen_BV) else self._seen_BV
