"""Hugging Face datasets: a memory-mapped Arrow table of fixed-length rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.common import BATCH, ROW_TOKENS, corpus_rows


def prepare(corpus: Path, out: Path) -> None:
    """Save an Arrow dataset with one fixed-size list of uint16 a row."""
    import datasets
    import pyarrow as pa

    flat = pa.array(np.asarray(corpus_rows(corpus)).reshape(-1))
    table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(flat, ROW_TOKENS)})
    datasets.Dataset(table).save_to_disk(str(out / "rows"))


def feed(corpus: Path, data: str) -> Iterator[torch.Tensor]:
    """Whole batches by index in numpy format, its fastest documented method."""
    import datasets

    dataset = datasets.load_from_disk(f"{data}/rows").with_format("numpy")
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = (dataset[order[at : at + BATCH]]["tokens"] for at in range(0, len(order), BATCH))
    return (torch.from_numpy(np.asarray(rows).astype(np.int64)) for rows in batches)
