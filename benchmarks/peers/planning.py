"""Open and seek of a plan over views that exist only as numbers; `python -m benchmarks.peers.planning N`.

Prints seconds and bytes to open a plan over N rows and to seek to 90 % of it; with `manifest SHARDS`, of
opening an index file of that many shards and locating tokens in it.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def plan(rows: int) -> dict[str, float]:
    """Open and seek a view of `rows` rows in four commits."""
    from fmscale.data.plan.plan import Plan, Source, Stage
    from fmscale.data.views.token_view import TokenView

    view = TokenView(
        dataset="synthetic",
        split="train",
        commits=(0, 1, 2, 3),
        manifests=("0" * 32,) * 4,
        masks=(),
        sequence_length=4097,
        packing="stream",
        rows_per_unit=32,
        window=2048,
        tokenizer=None,
        bos=None,
        eos=None,
        dtype="uint16",
        tokens=(4097 * (rows // 4),) * 4,
        order_version=1,
    )
    times = []
    before = resident()
    for _ in range(5):
        start = time.perf_counter()
        opened = Plan([Stage(from_k=0, sources=(Source(view=view, weight=2**32, seed=0),))])
        opened.samples(np.arange(rows * 9 // 10, rows * 9 // 10 + 8, dtype=np.uint64))
        times.append(time.perf_counter() - start)
    return {"seconds": float(np.median(times)), "bytes": resident() - before}


def manifest(shards: int) -> dict[str, float]:
    """Open an index of `shards` segments of one shard each, and locate 1,000 random tokens."""
    from fmscale.store.datasets.manifest import open_manifest
    from fmscale.store.datasets.manifest_writer import encode_manifest
    from fmscale.store.open import open_store
    from fmscale.store.segments.seal import SealInfo

    with tempfile.TemporaryDirectory() as folder:

        def rows():  # type: ignore[no-untyped-def]
            """Sealed segments of 2^25 tokens."""
            for unit in range(shards):
                yield unit, SealInfo(
                    kind="tokens", digest=f"{unit:032x}", tokens=2**25, documents=50_000,
                    bytes=2**26, dtype="uint16", split="train",
                )  # fmt: skip

        digest, _, data = encode_manifest(
            rows(), kind="tokens", split="train", dtype="uint16", job="0" * 32, folder="synthetic"
        )
        store = open_store(folder)
        store.put("index.arrow", data)
        size = len(data)
        del data
        before = resident()
        start = time.perf_counter()
        opened = open_manifest(store, "index.arrow", digest)
        seconds = time.perf_counter() - start
        rng = np.random.default_rng(0)
        for token in rng.integers(0, opened.tokens, 1000).tolist():
            opened.place(token)
        return {"seconds": seconds, "file_bytes": size, "resident_bytes": resident() - before}


if __name__ == "__main__":
    what, number = sys.argv[1], int(sys.argv[2])
    print(json.dumps(plan(number) if what == "plan" else manifest(number)))
