"""The S3 roofline: 256 KiB ranges by 16 threads with obstore, checked, shuffled in a window, widened."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.common import BATCH, ROW_TOKENS, corpus_rows
from benchmarks.peers.limit import BLOCK_ROWS, CHUNK

THREADS = 16


def feed(corpus: Path, data: str, cache: str) -> Iterator[torch.Tensor]:
    """One shuffled epoch from the object `corpus.u16` of the store at URL `data`."""
    import crc32c

    from fmscale.store.open import open_store

    store = open_store(data)
    sums = np.frombuffer(store.get("crc32c.bin"), dtype=np.uint32).reshape(-1, 6)
    count = len(corpus_rows(corpus))
    rng = np.random.default_rng(0)
    blocks = rng.permutation(-(-count // BLOCK_ROWS))
    row_bytes = ROW_TOKENS * 2

    def read(block: int) -> np.ndarray:
        rows = min(BLOCK_ROWS, count - block * BLOCK_ROWS)
        view = memoryview(bytearray(rows * row_bytes))
        store.read_into("corpus.u16", block * BLOCK_ROWS * row_bytes, view)
        for part, at in enumerate(range(0, len(view), CHUNK)):
            if crc32c.crc32c(view[at : at + CHUNK]) != sums[block, part]:
                raise ValueError(f"block {block} is damaged")
        return np.frombuffer(view, dtype=np.uint16).reshape(rows, ROW_TOKENS)

    window_blocks = 256
    with ThreadPoolExecutor(THREADS) as pool:
        pending = deque(pool.submit(read, int(block)) for block in blocks)
        while pending:
            taken = [pending.popleft() for _ in range(min(window_blocks, len(pending)))]
            window = np.concatenate([future.result() for future in taken])
            order = rng.permutation(len(window))
            for at in range(0, len(window), BATCH):
                yield torch.from_numpy(window[order[at : at + BATCH]].astype(np.int64))
