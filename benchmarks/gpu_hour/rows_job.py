"""The benchmark's attention rows at 8k tokens, with a record of each row as it ends.

python -m benchmarks.gpu_hour.rows_job --seconds 90
"""

import argparse
import sys
import time
from dataclasses import asdict

from benchmarks.gpu_hour.emit import emit
from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.contest import Run
from benchmarks.kernels.contests import Budget, measure

CLOSING_SECONDS = 8.0
"""Time beyond `--seconds` for the contest that runs then."""


def main() -> None:
    """Measure; emits the device's limits, each row with fmscale's kernel alone, and each row with all contestants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args()

    def done(result: Ceilings | Run) -> None:
        emit(sys.stdout, about="ceilings" if isinstance(result, Ceilings) else "row", **asdict(result))

    now = time.monotonic()
    measure(
        f"benchmarks.kernels.rows:{'tiny' if asked.dry else 'attention_at_8k'}", repeats=2 if asked.dry else 10,
        budget=Budget(soft=now + asked.seconds, hard=now + asked.seconds + CLOSING_SECONDS),
        say=lambda line: print(line, flush=True), done=done,
        ceilings={"copy_bytes": 2**20, "side": 64, "repeats": 2} if asked.dry else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
