"""Epochs of a class-sorted corpus: places of the received rows, and the bytes read for an epoch.

`python -m benchmarks.peers.shuffled STORE ROWS [WINDOW_UNITS MEMORY_BYTES OUT.npy]...`: for each window writes the
rows' places in the corpus in delivered order (from a row's first two tokens); prints the bytes that each read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.common import BATCH, ROW_TOKENS


def main() -> None:
    """Deliver an epoch for each window."""
    torch.set_num_threads(1)
    url, rows, *rest = sys.argv[1:]
    found = []
    for window, memory, out in zip(*[iter(rest)] * 3, strict=True):
        place, read = epoch(url, int(rows), int(window), int(memory))
        np.save(out, place)
        found.append(read)
    print(json.dumps(found))


def epoch(url: str, rows: int, window: int, memory: int) -> tuple[np.ndarray, dict[str, Any]]:
    """(places in delivered order, bytes read for the epoch after it)."""
    from fmscale.data.open import open_loader
    from fmscale.store.open import open_store

    store = open_store(url)
    loader = open_loader(
        store,
        dataset="corpus",
        sequence_length=ROW_TOKENS,
        batch=BATCH,
        window=window,
        memory_bytes=memory,
    )
    place = np.empty(rows, dtype=np.int64)
    for batch in loader:
        at = loader.k - batch.rows
        first = batch.tokens[:, :2].numpy()
        place[at : at + batch.rows] = first[:, 0] + (first[:, 1] << 16)
        if loader.k == rows:
            break
    # Read-ahead into the next epoch is the same now and at the end of that epoch.
    asked, read = sum(store.requests.bytes.values()), read_bytes()
    while loader.k < 2 * rows:
        next(loader)
    asked, read = sum(store.requests.bytes.values()) - asked, read_bytes() - read
    loader.close()
    return place, {"asked_bytes": asked, "read_bytes": read}


def read_bytes() -> int:
    """Bytes that this process got from read calls, page cache included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


if __name__ == "__main__":
    main()
