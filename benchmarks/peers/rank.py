"""A rank of a node that waits for commands, so that its memory can be measured from outside.

`python -m benchmarks.peers.rank STORE RANK RANKS MEMORY_BYTES BATCHES CACHE`: imports everything, prints a line;
waits for a line, opens its loader, delivers that many batches of 8 rows, prints the bytes of its batch buffers and of
the units in its memory; waits for a line, ends. CACHE is a folder, or - for none.
"""

import gc
import json
import sys

import torch


def main() -> None:
    """Import, wait, deliver, wait."""
    from benchmarks.peers.common import BATCH, ROW_TOKENS
    from fmscale.data.open import open_loader

    torch.set_num_threads(1)
    url, rank, ranks, memory, batches, cache = sys.argv[1:]
    torch.zeros(BATCH, ROW_TOKENS).sum()
    gc.collect()
    print(json.dumps({"imported": True}), flush=True)
    sys.stdin.readline()
    loader = open_loader(
        url,
        dataset="corpus",
        sequence_length=ROW_TOKENS,
        batch=BATCH * int(ranks),
        dp_rank=int(rank),
        dp_size=int(ranks),
        memory_bytes=int(memory),
        window=128,
        cache_dir=None if cache == "-" else cache,
    )
    buffers: dict[int, int] = {}
    for _ in range(int(batches)):
        tokens = next(loader).tokens
        buffers[tokens.data_ptr()] = tokens.nbytes
    del tokens
    gc.collect()
    # The int64 buffers are widened from a further buffer in the stored width.
    batch_bytes = sum(buffers.values()) + BATCH * ROW_TOKENS * 2
    print(json.dumps({"batch_bytes": batch_bytes}), flush=True)
    sys.stdin.readline()
    loader.close()


if __name__ == "__main__":
    main()
