"""CPU time of a checked read of a chunk, by our codec and through zarr-python: `python -m benchmarks.zarr_reads`.

Both read the same shards, warm, at the same random chunks, in turns. zarr-python checks no data here: the checksums of
tokens are ours.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.store.open import open_store
from fmscale.store.segments.tokens import open_segment, read_tokens
from fmscale.store.segments.tokens_writer import TokenSegmentWriter

CHUNK, TOKENS, READS, ROUNDS = 8192, 8_000_000, 300, 5
"""Tokens of a chunk (16 KiB) and of the segment; reads of a round; rounds."""


def cpu_microseconds(read: Callable[[int], Any], starts: list[int]) -> float:
    """CPU time of a read."""
    begin = time.process_time()
    for start in starts:
        read(start)
    return (time.process_time() - begin) / len(starts) * 1e6


def main() -> None:
    """Print medians and spread of both, and their ratio."""
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        with TokenSegmentWriter(Path(folder) / "scratch", dtype="uint16", split="train") as writer:
            writer.add(np.random.default_rng(0).integers(0, 2**16, TOKENS, dtype=np.uint16), bytes(16), "a", 0, TOKENS)
            segment = open_segment(store, "segment", writer.finish(store, "segment").digest)
        array: Any = zarr.open(Path(folder) / "segment" / "tokens", mode="r")
        reads: dict[str, Callable[[int], Any]] = {
            "fmscale": lambda start: read_tokens(store, segment, start, CHUNK),
            "zarr-python": lambda start: array[start : start + CHUNK],
        }
        draw = random.Random(0)
        starts = [draw.randrange(TOKENS // CHUNK) * CHUNK for _ in range(READS)]
        assert all((reads["fmscale"](start) == reads["zarr-python"](start)).all() for start in starts)
        found: dict[str, list[float]] = {name: [] for name in reads}
        for _ in range(ROUNDS):
            for name, read in reads.items():
                found[name].append(cpu_microseconds(read, starts))
    for name, times in found.items():
        print(f"{name:12} {statistics.median(times):8.1f} µs a read ({min(times):.1f} to {max(times):.1f})")
    ours, theirs = (statistics.median(times) for times in found.values())
    print(f"zarr-python takes {theirs / ours:.0f} times as much")


if __name__ == "__main__":
    main()
