"""The loader as a torch IterableDataset, for any training loop."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from fmscale.data.loader import Loader
from fmscale.errors import ConfigError


class TokenDataset(IterableDataset[dict[str, torch.Tensor]]):
    """Yields dictionaries: tokens int64 [B, T], positions int64 [B, T], loss_weights float32 [B, T] (weight of each
    token as a target) and cu_seqlens int32. Batches come ready: DataLoader(dataset, batch_size=None).

    `state_dict` and `load_state_dict` call the loader: its state is exact between steps, at any number of ranks.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Raises ConfigError inside a worker process, which would repeat the data of the other workers."""
        if (worker := get_worker_info()) is not None:
            raise ConfigError(
                "the loader prefetches with threads; worker processes would each deliver the same samples",
                found=f"num_workers={worker.num_workers}",
                remedy="Use DataLoader(dataset, batch_size=None, num_workers=0).",
            )
        for batch in self.loader:
            yield {
                "tokens": batch.tokens,
                "positions": batch.token_positions,
                "loss_weights": batch.loss_weights,
                "cu_seqlens": batch.piece_bounds,
            }

    def state_dict(self) -> dict[str, Any]:
        """State of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at `state`. Raises DataError for the state of another plan."""
        self.loader.load_state_dict(state)
