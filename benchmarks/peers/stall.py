"""`python -m benchmarks.peers.stall URL STEP_SECONDS STEPS prefetch|none`: share of time spent in waits."""

import json
import sys
import time

from benchmarks.peers.common import BATCH, ROW_TOKENS


def main() -> None:
    """Take some steps that only sleep, after a warm-up of ten."""
    from fmscale.data.open import open_loader

    url, step, steps = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    loader = open_loader(
        url,
        dataset="corpus",
        sequence_length=ROW_TOKENS,
        batch=BATCH,
        prefetch=sys.argv[4] == "prefetch",
    )
    for _ in range(10):
        next(loader)
        time.sleep(step)
    before, started = loader.stall_seconds, time.perf_counter()
    for _ in range(steps):
        next(loader)
        time.sleep(step)
    total = time.perf_counter() - started
    print(json.dumps({"stall_fraction": (loader.stall_seconds - before) / total}))
    loader.close()


if __name__ == "__main__":
    main()
