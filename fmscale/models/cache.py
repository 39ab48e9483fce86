"""Keys and values of the tokens read so far, for generation: a row for each sequence, cut into pages on a CPU."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.kernels import attention_decode, attention_pages
from fmscale.kernels.launch import accumulator

PAGE = 64
"""Keys of a page. Each product of attention has a page's shape, so the bits of a sequence never depend on others."""


@dataclass(kw_only=True, eq=False)
class _Step:
    """Places of one forward's new tokens, the same in all layers."""

    index: Tensor
    """int64 (new tokens * K,): their rows in a layer's pages, which are read as (pages * B * K * page, E)."""
    lengths_B: Tensor
    """int64: number of keys of each sequence, the keys of this forward included."""
    tokens: int
    """New tokens of each sequence; 0 in a forward that reads prompts."""
    pages: int
    """Pages up to the end of the longest sequence."""
    rows: int
    """Sequences: further rows of tokens are padding."""
    capacity: int
    """Capacity for which the decode kernel cuts its spans."""
    follows: list[tuple[int, int]] | None = None
    """Row and number of keys of each prompt, where prompts follow cached tokens."""
    biases: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)
    """Biases of `attention_pages` by (window, query heads)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCache:
    """One layer's part of the cache in one forward."""

    keys: Tensor
    """(pages, B, K, page, E), turned by their positions."""
    values: Tensor
    """(pages, B, K, page, E)."""
    flat: tuple[Tensor, Tensor]
    """Both as (pages * B * K * page, E)."""
    read: tuple[Tensor, Tensor]
    """Both up to the last page in use, as (pages * B * K, page, E)."""
    step: _Step
    """Places of the new tokens."""

    def write(self, k: Tensor, v: Tensor) -> None:
        """Add keys and values (..., K, E) of the new tokens in their order; padding behind them is left out."""
        index = self.step.index
        for flat, new in zip(self.flat, (k, v), strict=True):
            flat.index_copy_(0, index, new.reshape(-1, new.shape[-1])[: index.shape[0]])

    def attend(
        self, q: Tensor, *, window: int | None, softcap: float | None, scale: float | None = None, backend: str = "auto"
    ) -> Tensor:
        """Attention of the newest tokens q (B, T, H, E) to the cache, and any numbers for padding; arguments as in
        `attention_decode`.
        """
        step, padded = self.step, q
        backend = "auto" if backend in ("sdpa", "varlen") else backend  # torch's own cannot read a cache
        if q.shape[0] > step.rows:
            q = q[: step.rows]
        if self.keys.is_cuda or backend == "triton":
            k, v = self.keys[0].transpose(1, 2), self.values[0].transpose(1, 2)
            out: Tensor = attention_decode(
                q, k, v, step.lengths_B, window=window, softcap=softcap, scale=scale, capacity=step.capacity,
                backend=backend,
            )  # fmt: skip
        else:
            out = attention_pages(q, *self.read, self._bias(window, q), softcap=softcap, scale=scale)
        return out if q is padded else torch.cat((out, padded[step.rows :]))

    def context(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (1, N, K, E) that prompts see, with the boundaries (prompts + 1,) of N: the cached keys
        where prompts follow cached tokens, else k and v themselves and no boundaries of their own.
        """
        if self.step.follows is None:
            return k, v, None
        parts = [
            torch.cat([pages[:, row].transpose(1, 2).flatten(0, 1)[:n] for row, n in self.step.follows])[None]
            for pages in (self.keys[: self.step.pages], self.values[: self.step.pages])
        ]
        ends = torch.tensor([0, *(n for _, n in self.step.follows)], device=k.device).cumsum(0)
        return parts[0], parts[1], ends.to(torch.int32)

    def _bias(self, window: int | None, q: Tensor) -> Tensor:
        step, heads = self.step, q.shape[2]
        if (window, heads) not in step.biases:
            B, K, page = self.keys.shape[1:4]
            key = torch.arange(step.pages * page, device=q.device)
            new = torch.arange(step.tokens, device=q.device)[:, None] - step.tokens
            behind = step.lengths_B[:, None, None] + new - key
            hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
            bias_BTS = torch.zeros(hidden.shape, dtype=accumulator(q.dtype), device=q.device)
            bias_BTS.masked_fill_(hidden, -torch.inf)
            bias = bias_BTS.view(B, 1, 1, step.tokens, step.pages, page).permute(4, 0, 1, 2, 3, 5)
            whole = bias.expand(-1, -1, K, heads // K, -1, -1)
            step.biases[window, heads] = whole.reshape(step.pages * B * K, -1, page)
        return step.biases[window, heads]


_Views = tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def padded_rows(rows: int, multiple: int) -> int:
    """The next multiple."""
    return -(-rows // multiple) * multiple


class KVCache:
    """Keys and values of B sequences in all layers, up to `capacity` tokens each.

    `Decoder.forward(tokens (1, N), cu_seqlens=..., cache=cache.at(rows))` reads packed prompts of any lengths, one into
    each row, behind what the row has. `Decoder.forward(tokens (B, T), cache=cache)` adds T tokens to every sequence.
    """

    def __init__(
        self, config: ModelConfig, sequences: int, capacity: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        # the kernel for GPUs takes a row as one piece: a single page
        one = torch.device(device).type == "cuda" or config.attention_backend == "triton"
        page = capacity if one else PAGE
        shape = (config.num_layers, -(-capacity // page), sequences, config.kv_heads, page, config.head_width)
        # zeros: entries beyond a length have weight 0, and 0 * NaN of uninitialised memory would be NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * sequences
        """Number of keys of each row."""
        self.idle: set[int] = set()
        """Rows without a sequence: they take part in forwards, and keep their keys before their length."""
        self.capacity = capacity
        self.padding = 1
        """Divisor of the rows of tokens of a forward, those after the last sequence included: these are not read."""
        self._spans = max(capacity, config.max_seq_len)
        self._rows: Sequence[int] = range(sequences)
        self._views: dict[int, list[_Views]] = {}

    @property
    def padded(self) -> int:
        """Rows of tokens of a forward that adds to every sequence."""
        return padded_rows(len(self.lengths), self.padding)

    def at(self, rows: Sequence[int]) -> Self:
        """The same cache, whose packed forwards read prompts into these rows."""
        view = copy.copy(self)
        view._rows = rows
        return view

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Begin row `target` with the first `tokens` keys of row `source`."""
        page = self.keys.shape[4]
        last = -(-tokens // page)
        for pages in (self.keys, self.values):
            pages[:, :last, target, :, :tokens] = pages[:, :last, source, :, :tokens]
        self.lengths[target] = tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows except these, which come in this order."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[:, :, index], self.values[:, :, index]
        self.lengths = [self.lengths[row] for row in rows]
        self.idle = {new for new, row in enumerate(rows) if row in self.idle}
        self._rows = range(len(rows))
        self._views.clear()

    def _layers(self, pages: int) -> list[_Views]:
        """Each layer's keys, values, and both as `LayerCache.flat` and `read`: made once for a number of pages."""
        if pages not in self._views:
            page, E = self.keys.shape[4:]
            self._views[pages] = [
                (
                    k, v, (k.view(-1, E), v.view(-1, E)),
                    (k[:pages].view(-1, page, E), v[:pages].view(-1, page, E)),
                )
                for k, v in zip(self.keys, self.values, strict=True)
            ]  # fmt: skip
        return self._views[pages]

    def begin(self, tokens_BT: Tensor, cu_seqlens: Tensor | None) -> tuple[list[LayerCache], Tensor]:
        """Make room for new tokens: return each layer's cache and the tokens' positions (B, T).

        Raises ConfigError if the tokens do not fit.
        """
        B, T = tokens_BT.shape
        device, before = self.keys.device, self.lengths
        if cu_seqlens is not None:
            rows, ends = list(self._rows), cu_seqlens.tolist()
            if B != 1 or len(ends) != len(rows) + 1:
                raise ConfigError(
                    "Prompts are read packed, as one row of tokens, into as many rows of the cache",
                    found=f"{B} rows of tokens, {len(ends) - 1} prompts for {len(rows)} rows",
                    remedy="Name the rows with `cache.at(rows)`.",
                )
            counts = [stop - start for start, stop in pairwise(ends)]
            grown = dict(zip(rows, counts, strict=True))
            sequence_N = torch.tensor(rows).repeat_interleave(torch.tensor(counts))
            position_N = torch.cat([torch.arange(before[row], before[row] + n) for row, n in grown.items()])
        else:
            rows = list(range(len(before)))
            if self.padded != B:
                remedy = "One row of tokens for each sequence."
                raise ConfigError("The cache holds another number of sequences", found=(B, self.padded), remedy=remedy)
            grown = {row: T for row in rows if row not in self.idle}
            starts = [min(n, self.capacity - T) if row in self.idle else n for row, n in enumerate(before)]
            sequence_N = torch.arange(len(rows)).repeat_interleave(T)
            position_N = (torch.tensor(starts)[:, None] + torch.arange(T)).flatten()
        longest = max((before[row] + n for row, n in grown.items()), default=1)
        if longest > self.capacity:
            found, remedy = f"{longest} of {self.capacity}", "Make the cache for the prompt and all new tokens."
            raise ConfigError("The tokens do not fit into the cache", found=found, remedy=remedy)
        follows = None
        if cu_seqlens is not None and any(before[row] for row in rows):
            follows = [(row, before[row] + n) for row, n in grown.items()]
        for row, n in grown.items():
            self.lengths[row] += n
        K, page = self.keys.shape[3:5]
        first_N = (position_N // page * self.keys.shape[2] + sequence_N) * (K * page) + position_N % page
        # a query without a key in the pages would give NaN, which an idle row would keep for its next sequence
        seen = self.lengths if cu_seqlens is not None else [min(n + T, -(-longest // page) * page) for n in starts]
        step = _Step(
            index=(first_N[:, None] + torch.arange(K) * page).flatten().to(device),
            lengths_B=torch.tensor(seen).to(device),
            tokens=0 if cu_seqlens is not None else T,
            pages=-(-longest // page),
            rows=len(before),
            capacity=self._spans,
            follows=follows,
        )
        layers = [
            LayerCache(keys=k, values=v, flat=flat, read=read, step=step)
            for k, v, flat, read in self._layers(step.pages)
        ]
        with torch.inference_mode(False):  # `rope_angles` keeps those of tensors with a version
            positions_BT = torch.zeros(B * T, dtype=torch.int64)
            positions_BT[: len(position_N)] = position_N.clone()
            positions_BT = positions_BT.view(B, T).to(device)
        return layers, positions_BT
