"""Megatron-core indexed dataset: one document a row, random access, collated by torch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.common import BATCH, corpus_rows


def prepare(corpus: Path, out: Path) -> None:
    """Write the .bin/.idx pair with Megatron's own builder."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(out / "rows.bin"), dtype=np.uint16)
    for row in corpus_rows(corpus):
        builder.add_document(torch.from_numpy(row.astype(np.int32)), [len(row)])
    builder.finalize(str(out / "rows.idx"))


class Rows(torch.utils.data.Dataset):
    """GPTDataset's access pattern: one get per sample, widened to int64."""

    def __init__(self, prefix: Path) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        self.indexed = IndexedDataset(str(prefix))

    def __len__(self) -> int:
        return len(self.indexed)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.indexed.get(index).astype(np.int64))


def feed(corpus: Path, data: str) -> Iterator[torch.Tensor]:
    """Shuffled rows through torch's DataLoader, no workers."""
    return iter(torch.utils.data.DataLoader(Rows(Path(data) / "rows"), batch_size=BATCH, shuffle=True))
