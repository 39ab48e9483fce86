"""Keys and values of the tokens read so far, for generation: contiguous, a row for each sequence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCache:
    """One layer's part of the cache in one forward. Shapes: S capacity, N new tokens over all sequences."""

    keys_BSKE: Tensor
    """Keys, turned by their positions."""
    values_BSKE: Tensor
    lengths_B: Tensor
    """int64: number of keys of each sequence, the keys of this forward included."""
    sequence_N: Tensor
    """int64: sequence of each new token."""
    position_N: Tensor
    """int64: position of each new token in its sequence."""

    def write(self, k: Tensor, v: Tensor) -> None:
        """Add keys and values of the new tokens, (..., K, E) in the order of `sequence_N`."""
        where = (self.sequence_N, self.position_N)
        self.keys_BSKE[where] = k.flatten(0, -3)
        self.values_BSKE[where] = v.flatten(0, -3)


class KVCache:
    """Keys and values of B sequences in all layers, up to `capacity` tokens each.

    Prompts go in first, packed, of any lengths: `Decoder.forward(tokens (1, N), cu_seqlens=..., cache=cache)`. Each
    later forward adds T tokens to every sequence: `Decoder.forward(tokens (B, T), cache=cache)`.
    """

    def __init__(
        self, config: ModelConfig, sequences: int, capacity: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.num_layers, sequences, capacity, config.kv_heads, config.head_width)
        # zeros: entries beyond a length have weight 0, and 0 * NaN of uninitialised memory would be NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths_B = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.capacity = capacity
        self._longest = 0

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences except `rows` (int64 numbers)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths_B = self.lengths_B[rows]

    def begin(self, tokens_BT: Tensor, cu_seqlens: Tensor | None) -> tuple[list[LayerCache], Tensor]:
        """Make room for new tokens: return each layer's cache and the tokens' positions (B, T).

        Raises ConfigError if the tokens do not fit.
        """
        sequences = self.lengths_B.shape[0]
        B, T = tokens_BT.shape
        if cu_seqlens is not None:
            if self._longest or B != 1 or cu_seqlens.shape != (sequences + 1,):
                raise ConfigError(
                    "Prompts are read packed, as one row, into an empty cache",
                    found=f"rows {B}, {cu_seqlens.numel() - 1} prompts for {sequences} sequences, "
                    f"{self._longest} tokens in the cache",
                    remedy="Make a new KVCache for new prompts.",
                )
            lengths_B = cu_seqlens.diff().to(torch.int64)
            sequence_N = torch.repeat_interleave(lengths_B, output_size=T)
            position_N = torch.arange(T, device=tokens_BT.device) - cu_seqlens[sequence_N].to(torch.int64)
            longest = int(lengths_B.max())
        else:
            if sequences != B:
                remedy = "One row of tokens for each sequence."
                raise ConfigError("The cache holds another number of sequences", found=(B, sequences), remedy=remedy)
            lengths_B = self.lengths_B + T
            new = torch.arange(T, device=tokens_BT.device)
            position_N = (self.lengths_B[:, None] + new).flatten()
            sequence_N = torch.arange(B, device=tokens_BT.device).repeat_interleave(T)
            longest = self._longest + T
        if longest > self.capacity:
            found, remedy = f"{longest} of {self.capacity}", "Make the cache for the prompt and all new tokens."
            raise ConfigError("The tokens do not fit into the cache", found=found, remedy=remedy)
        self._longest, self.lengths_B = longest, lengths_B
        layers = [
            LayerCache(
                keys_BSKE=keys, values_BSKE=values, lengths_B=lengths_B, sequence_N=sequence_N, position_N=position_N
            )
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        return layers, position_N.view(B, T)
