"""The command line of `benchmarks/gpu_hour.sh`."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.gpu_hour.hour import Asked, run_hour
from benchmarks.harness import RESULTS


def main() -> int:
    """Run the hour; 0 if all steps succeeded, 1 if not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="gpu_hour.sh", description="What one GPU shows of the claims.")
    parser.add_argument("mode", nargs="?", choices=("train", "kernels"), default="train")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all steps together (540)")
    parser.add_argument("--dry-run", action="store_true", help="the same road, tiny and on a CPU")
    parser.add_argument("--only", default="", help="these steps, as 1,6; step 0 is always run")
    parser.add_argument("--out", type=Path, help="where records go (MODE in $OUT or benchmarks/results/gpu-hour)")
    parser.add_argument("--scratch", type=Path, help="folder for a store and two checkpoints (45 GB)")
    asked = parser.parse_args()
    given = os.environ.get("OUT")
    out = asked.out or (Path(given) if given else RESULTS / "gpu-hour") / asked.mode
    try:
        return run_hour(
            Asked(
                mode=asked.mode,
                seconds=asked.seconds,
                dry=asked.dry_run,
                only=asked.only,
                out=out.resolve(),
                scratch=asked.scratch,
            )
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
