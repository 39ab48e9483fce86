"""The roofline: verified block reads, shuffled in a window, gathered and widened.

Reads 256 KiB blocks in random order, checks four crc32c each, keeps a window of them in memory and draws
batches at random from the window: the least work that delivers shuffled, verified int64 batches.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.common import BATCH, ROW_TOKENS, corpus_rows

BLOCK_ROWS = 32
CHUNK = 65536


def prepare(corpus: Path, out: Path) -> None:
    """Write the checksums of every 64 KiB of every block."""
    import crc32c

    rows = corpus_rows(corpus)
    sums = []
    for first in range(0, len(rows), BLOCK_ROWS):
        block = memoryview(np.ascontiguousarray(rows[first : first + BLOCK_ROWS])).cast("B")
        parts = [crc32c.crc32c(block[at : at + CHUNK]) for at in range(0, len(block), CHUNK)]
        sums.append(parts + [0] * (6 - len(parts)))
    np.save(out / "crc32c.npy", np.array(sums, dtype=np.uint32))


def feed(corpus: Path, data: str, window: int = 2048) -> Iterator[torch.Tensor]:
    """One shuffled epoch, single-threaded; `window` blocks are shuffled among one another."""
    import os

    import crc32c

    sums = np.load(Path(data) / "crc32c.npy")
    count = len(corpus_rows(corpus))
    rng = np.random.default_rng(0)
    blocks = rng.permutation(-(-count // BLOCK_ROWS))
    block_bytes = BLOCK_ROWS * ROW_TOKENS * 2
    held = np.empty((min(window, len(blocks)) * BLOCK_ROWS, ROW_TOKENS), dtype=np.uint16)
    narrow = np.empty((BATCH, ROW_TOKENS), dtype=np.uint16)
    wide = [np.empty((BATCH, ROW_TOKENS), dtype=np.int64) for _ in range(4)]
    turn = 0
    with corpus.open("rb", buffering=0) as file:
        for first in range(0, len(blocks), window):
            filled = 0
            for block in blocks[first : first + window]:
                rows = min(BLOCK_ROWS, count - block * BLOCK_ROWS)
                view = memoryview(held[filled : filled + rows]).cast("B")
                os.preadv(file.fileno(), [view], int(block) * block_bytes)
                for part, at in enumerate(range(0, len(view), CHUNK)):
                    if crc32c.crc32c(view[at : at + CHUNK]) != sums[block, part]:
                        raise ValueError(f"block {block} is damaged")
                filled += rows
            order = rng.permutation(filled)
            for at in range(0, filled - BATCH + 1, BATCH):
                np.take(held, order[at : at + BATCH], axis=0, out=narrow, mode="clip")
                turn = (turn + 1) % 4
                np.copyto(wide[turn], narrow)
                yield torch.from_numpy(wide[turn])
            if rest := filled % BATCH:
                yield torch.from_numpy(held[order[-rest:]].astype(np.int64))
