"""fmscale: the corpus as a dataset with real document boundaries, delivered by the public loader."""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import xxhash

from benchmarks.peers.common import BATCH, ROW_TOKENS, corpus_rows

SEGMENT_TOKENS = 2**24
DATASET = "corpus"


def write_dataset(corpus: Path, url: str, *, dataset: str = DATASET, segment_tokens: int = SEGMENT_TOKENS) -> None:
    """Store the corpus: documents of lognormal length, mean about 600, in segments of 32 MiB."""
    from fmscale.store.datasets.dataset import create_or_open
    from fmscale.store.open import open_store
    from fmscale.store.segments.seal import segment_prefix
    from fmscale.store.segments.tokens_writer import TokenSegmentWriter

    backend = open_store(url)
    tokens = np.asarray(corpus_rows(corpus)).reshape(-1)
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(np.log(450), 0.75, len(tokens) // 300).astype(np.int64), 1)
    ends = np.cumsum(lengths)
    ends = np.append(ends[ends < len(tokens)], len(tokens))
    seals = []
    with tempfile.TemporaryDirectory() as scratch:
        for unit, first in enumerate(range(0, len(tokens), segment_tokens)):
            last = min(first + segment_tokens, len(tokens))
            inside = ends[(ends > first) & (ends < last)]
            edges = [first, *inside.tolist(), last]
            with TokenSegmentWriter(Path(scratch) / str(unit), dtype="uint16", split="train") as writer:
                for start, stop in pairwise(edges):
                    name = f"{dataset}-{start}"
                    writer.add(tokens[start:stop], xxhash.xxh3_128_digest(name.encode()), name, 0, stop - start)
                seals.append((unit, writer.finish(backend, segment_prefix(dataset, "bench", unit, "train"))))
    create_or_open(backend, dataset).append_commit(
        job="bench", segments={"train": seals}, tokenizer=None, dtype="uint16"
    )


def prepare(corpus: Path, out: Path) -> None:
    """Write the dataset into a local store."""
    write_dataset(corpus, str(out))


def feed(
    corpus: Path, data: str, cache: str | None = None, memory_bytes: int = 2**30, window: int = 2048
) -> Iterator[torch.Tensor]:
    """Shuffled batches for ever; the measurement counts epochs."""
    from fmscale.data.open import open_loader

    loader = open_loader(
        data,
        dataset=DATASET,
        sequence_length=ROW_TOKENS,
        batch=BATCH,
        seed=0,
        memory_bytes=memory_bytes,
        cache_dir=cache,
        window=window,
    )
    return (batch.tokens for batch in loader)
