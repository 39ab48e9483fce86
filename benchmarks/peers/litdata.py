"""LitData: TokensLoader over 64 MB chunks, StreamingDataset with shuffle, its own DataLoader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.common import BATCH, ROW_TOKENS, corpus_rows

CHUNK_ROWS = 8192
"""Rows of a chunk: 64 MB of uint16; whole rows, because TokensLoader drops the rest of a chunk."""


def tokenize(start: int, corpus: str) -> Iterator[torch.Tensor]:
    """The rows of one input of `optimize`, in LitData's form: one tensor each."""
    for row in corpus_rows(Path(corpus))[start : start + CHUNK_ROWS]:
        yield torch.from_numpy(row.copy())


def prepare(corpus: Path, out: Path) -> None:
    """Write chunks with LitData's own `optimize`."""
    from functools import partial

    from litdata import TokensLoader, optimize

    rows = len(corpus_rows(corpus))
    optimize(
        fn=partial(tokenize, corpus=str(corpus)),
        inputs=list(range(0, rows, CHUNK_ROWS)),
        output_dir=str(out),
        chunk_size=CHUNK_ROWS * ROW_TOKENS,
        item_loader=TokensLoader(block_size=ROW_TOKENS),
        num_workers=1,
        mode="overwrite",
    )


def feed(corpus: Path, data: str) -> Iterator[torch.Tensor]:
    """StreamingDataset, shuffled, through StreamingDataLoader without workers."""
    from litdata import StreamingDataset, TokensLoader

    dataset = StreamingDataset(data, item_loader=TokensLoader(block_size=ROW_TOKENS), shuffle=True, drop_last=False)
    return _widened(dataset)


def feed_s3(corpus: Path, data: str, cache: str) -> Iterator[torch.Tensor]:
    """The same from S3 into an empty cache. Its obstore path refuses http endpoints (0.2.76 drops allow_http), so boto3
    is set, its own choice without obstore.
    """
    import os

    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming import async_prefetch, downloader

    for module in (async_prefetch, downloader):
        module.obstore_usable = lambda: False
    dataset = StreamingDataset(
        data,
        cache_dir=cache,
        item_loader=TokensLoader(block_size=ROW_TOKENS),
        shuffle=True,
        drop_last=False,
        storage_options={"endpoint_url": os.environ["S3_ENDPOINT_URL"]},
    )
    return _widened(dataset)


def _widened(dataset: Any) -> Iterator[torch.Tensor]:
    from litdata import StreamingDataLoader

    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    return (batch.to(torch.int64) for batch in loader)
