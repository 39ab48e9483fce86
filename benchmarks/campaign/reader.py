"""A process that reads a dataset's tokens through a node cache, and compares every byte, until it is killed.

    python -m benchmarks.campaign.reader STORE CACHE LIMIT PATIENCE SEED

Prints a line of JSON every READS reads: the reads with wrong bytes, the longest time that one read slept for locks, and
bytes from the cache. Time asleep is that of the promise: other programs on the machine make a read longer.
"""

import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from fmscale.store.open import open_store
from fmscale.store.segments.tokens import open_segment
from fmscale.store.tiers import range_lock
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.fetch import Fetcher

READS = 20
REGION = 1 << 16


def main(url: str, cache: str, limit: str, patience: str, seed: str) -> None:
    """Read random bytes of random segments."""
    chance, slept = random.Random(int(seed)), [0.0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds
        time.sleep(seconds)

    setattr(range_lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))  # noqa: B010
    store = open_store(url, read_only=True)
    node = NodeCache(Path(cache), int(limit), patience=float(patience))
    fetcher = Fetcher(store, node, region_bytes=REGION)
    refs = [open_segment(store, *json.loads(line)).array_shard("tokens", 0) for line in sys.stdin.readline().split()]
    contents = [store.get(ref.key) for ref in refs]
    wrong, longest, number = 0, 0.0, 0
    while True:
        number += 1
        which = chance.randrange(len(refs))
        ref, content = refs[which], contents[which]
        length = chance.randrange(1, 4 * ref.chunk_bytes)
        at = chance.randrange(ref.bytes - length)
        out = bytearray(length)
        slept[0] = 0.0
        if chance.random() < 0.3:
            fetcher.advise(ref, at, length, number)
            longest, slept[0] = max(longest, slept[0]), 0.0
        fetcher.read(ref, at, memoryview(out), number + chance.randrange(100))
        longest = max(longest, slept[0])
        wrong += out != content[at : at + length]
        if number % READS == 0:
            print(json.dumps({"wrong": wrong, "longest": longest, "hit": node.requests.bytes["hit"]}), flush=True)
            wrong, longest = 0, 0.0


if __name__ == "__main__":
    main(*sys.argv[1:])
