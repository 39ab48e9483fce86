"""Delivers during a fault, and compares every row with the corpus.

`python -m benchmarks.peers.faulted STORE FIRST TOTAL DIGESTS.npy CACHE`: delivers FIRST samples, prints a line and
waits for a line, delivers up to TOTAL, prints the result. DIGESTS has the xxh3_64 of each row of the corpus. CACHE is a
folder, or - for none. The memory is small, so that few rows after the pause were read before it.
"""

import json
import sys
import time

import numpy as np
import torch

UNITS = 12
"""Units in memory, of 64 in the corpus; 8 of them are a shuffle window."""


def main() -> None:
    """Deliver in two halves."""
    import xxhash

    from benchmarks.peers.common import BATCH, ROW_TOKENS
    from fmscale.data.open import open_loader
    from fmscale.store.open import open_store

    torch.set_num_threads(1)
    url, first, total, digests, cache = sys.argv[1:]
    stored = np.load(digests)
    store = open_store(url)
    loader = open_loader(
        store,
        dataset="corpus",
        sequence_length=ROW_TOKENS,
        batch=BATCH,
        window=8,
        memory_bytes=UNITS * 33 * ROW_TOKENS * 2,
        run="faults",
        quarantine_share=0.2,  # one lost object is an eighth of this small corpus
        cache_dir=None if cache == "-" else cache,
    )
    order = xxhash.xxh3_64()
    silent, longest, asked = 0, 0.0, 0
    paused = False
    while loader.k < int(total):
        if not paused and loader.k >= int(first):
            print(json.dumps({"delivered": loader.k}), flush=True)
            sys.stdin.readline()
            paused, asked = True, store.requests.bytes.get("get_range", 0)
        started = time.perf_counter()
        batch = next(loader)
        longest = max(longest, time.perf_counter() - started)
        for i in range(batch.rows):
            digest = xxhash.xxh3_64_intdigest(batch.tokens[i].numpy().astype(np.uint16))
            silent += int(digest != int(stored[batch.row[i]]))
            order.update(int(batch.k[i]).to_bytes(8, "little") + digest.to_bytes(8, "little"))
    replaced = sum(stop - first for ban in loader.plan.bans for first, stop in ban.rows)
    print(
        json.dumps(
            {
                "samples": loader.k,
                "silent": silent,
                "replaced_rows": replaced,
                "order": order.hexdigest(),
                "longest_wait": longest,
                "store_bytes_after_pause": store.requests.bytes.get("get_range", 0) - asked,
            }
        ),
        flush=True,
    )
    loader.close()


if __name__ == "__main__":
    main()
