"""numpy.memmap: as torch's DataLoader over single rows, and as a hand-written batched gather."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.common import BATCH, corpus_rows


def prepare(corpus: Path, out: Path) -> None:
    """Nothing to do: the corpus is already a flat file."""


class Rows(torch.utils.data.Dataset):
    """One row an item, as in most hand-written token datasets."""

    def __init__(self, corpus: Path) -> None:
        self.rows = corpus_rows(corpus)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.rows[index].astype(np.int64))


def dataloader(corpus: Path, data: str) -> Iterator[torch.Tensor]:
    """torch DataLoader over the memmap, shuffled, no workers (the fastest setting here)."""
    return iter(torch.utils.data.DataLoader(Rows(corpus), batch_size=BATCH, shuffle=True))


def batched(corpus: Path, data: str) -> Iterator[torch.Tensor]:
    """Whole batches gathered from the memmap by a permutation, as in a careful hand-written loader."""
    rows = corpus_rows(corpus)
    order = np.random.default_rng(0).permutation(len(rows))
    for first in range(0, len(rows), BATCH):
        yield torch.from_numpy(rows[order[first : first + BATCH]].astype(np.int64))
