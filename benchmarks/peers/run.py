"""One system, one process: `python -m benchmarks.peers.run SYSTEM prepare|check|feed …`; prints JSON last.

`check` also prepares the data, which saves a second start.

`first_batch_seconds` counts from after `import torch`, as the target says, so it includes the import of the system's
own package.
"""

import argparse
import importlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers import common

SYSTEMS: dict[str, tuple[str, str]] = {
    "limit": ("benchmarks.peers.limit", "feed"),
    "memmap_batched": ("benchmarks.peers.memmap", "batched"),
    "memmap_dataloader": ("benchmarks.peers.memmap", "dataloader"),
    "megatron": ("benchmarks.peers.megatron", "feed"),
    "litdata": ("benchmarks.peers.litdata", "feed"),
    "mosaic": ("benchmarks.peers.mosaic", "feed"),
    "hf_datasets": ("benchmarks.peers.hf", "feed"),
    "limit_s3": ("benchmarks.peers.limit_s3", "feed"),
    "litdata_s3": ("benchmarks.peers.litdata", "feed_s3"),
    "mosaic_s3": ("benchmarks.peers.mosaic", "feed_s3"),
    "fmscale": ("benchmarks.peers.ours", "feed"),
}


def main() -> None:
    """Run one system once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("action", choices=["prepare", "feed", "check"])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--data", required=True, help="folder of the prepared data, or a store URL")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warmup", type=float, default=3.0, help="0: cold, from the first read on")
    parser.add_argument("--cache", help="empty folder for a system that reads a remote store")
    parser.add_argument("--memory-bytes", type=int, help="of our loader, bytes")
    parser.add_argument("--window", type=int, help="units shuffled among one another, ours and the roofline's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    opened_at = time.time()
    module_name, function = SYSTEMS[args.system]
    module = importlib.import_module(module_name)
    if args.action in ("prepare", "check"):
        Path(args.data).mkdir(parents=True, exist_ok=True)
        module.prepare(args.corpus, Path(args.data))
    if args.action == "prepare":
        common.emit({"prepared": args.system})
        return
    options = {"cache": args.cache, "memory_bytes": args.memory_bytes, "window": args.window}
    open_feed = partial(
        getattr(module, function), **{key: value for key, value in options.items() if value is not None}
    )
    feed = open_feed(args.corpus, args.data)
    pending = [feed]

    def epoch() -> Iterator[torch.Tensor]:
        """The feed opened above first, then new feeds."""
        return pending.pop() if pending else open_feed(args.corpus, args.data)

    rows = len(common.corpus_rows(args.corpus))
    if args.action == "check":
        common.emit(common.check(epoch, rows))
        return
    common.emit(
        common.measure(
            epoch,
            opened_at=opened_at,
            rows_per_epoch=rows,
            warmup_seconds=args.warmup,
            seconds=args.seconds,
        )
    )


if __name__ == "__main__":
    main()
