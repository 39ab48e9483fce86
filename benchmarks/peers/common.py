"""Common parts of all loaders under test: the corpus, the feed protocol, the measurement.

A feed is an iterator over int64 tensors [batch, T] for one shuffled epoch (fmscale's goes on into the next). It runs in
a fresh process; first batch and steady state are timed separately. Another run sums xxh3 over the rows: every system
must deliver the same rows, each once, before its speed counts.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROW_TOKENS = 4097
BATCH = 8


def corpus_rows(path: Path) -> np.ndarray:
    """The corpus: uint16 [rows, ROW_TOKENS], memory-mapped."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    return tokens[: len(tokens) // ROW_TOKENS * ROW_TOKENS].reshape(-1, ROW_TOKENS)


def row_hash(rows: np.ndarray) -> int:
    """Order-free hash of int64 rows: the sum of their xxh3_64, modulo 2**64."""
    import xxhash

    return sum(xxhash.xxh3_64_intdigest(np.ascontiguousarray(row)) for row in rows) % 2**64


def cpu_seconds() -> float:
    """CPU time of this process and its finished children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(
    epoch: Callable[[], Iterator[Any]],
    *,
    opened_at: float,
    rows_per_epoch: int,
    warmup_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """Speed of an imported and open feed: epochs one after another, as in training.

    The warm-up ends after one epoch or `warmup_seconds`; then tokens, seconds and cpu_seconds are counted for
    at least `seconds`, first and last element of each batch touched, as a training step would.
    first_batch_seconds counts from `opened_at`, with imports and opening. With warmup_seconds 0 the clock
    starts before the first batch and stops after one epoch at the latest: a cold read.
    """
    start, cpu = time.perf_counter(), cpu_seconds()
    first_batch = None
    warm = warmup_seconds == 0
    rows = tokens = 0
    while True:
        for batch in epoch():
            int(batch[0, 0]), int(batch[-1, -1])
            now = time.perf_counter()
            if first_batch is None:
                first_batch = time.time() - opened_at
            rows += batch.shape[0]
            tokens += batch.numel()
            elapsed = now - start
            if not warm and (rows >= rows_per_epoch or elapsed > warmup_seconds):
                warm, tokens, start, cpu = True, 0, time.perf_counter(), cpu_seconds()
            elif warm and (elapsed > seconds or (warmup_seconds == 0 and rows >= rows_per_epoch)):
                return {
                    "first_batch_seconds": first_batch,
                    "tokens": tokens,
                    "seconds": elapsed,
                    "cpu_seconds": cpu_seconds() - cpu,
                }


def check(epoch: Callable[[], Iterator[Any]], rows_per_epoch: int) -> dict[str, Any]:
    """Hash and number of the rows of one epoch."""
    digest = rows = 0
    for batch in epoch():
        digest = (digest + row_hash(batch.numpy())) % 2**64
        rows += batch.shape[0]
        if rows >= rows_per_epoch:
            break
    return {"rows": rows, "hash": f"{digest:016x}"}


def emit(result: dict[str, Any]) -> None:
    """Print the result as the last line of standard output."""
    print(json.dumps(result), flush=True)
