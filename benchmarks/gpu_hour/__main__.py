"""The command line of `benchmarks/gpu_hour.sh`."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.gpu_hour.hour import Asked, run_hours
from benchmarks.gpu_hour.steps import DRY_SECONDS, SECONDS
from benchmarks.harness import RESULTS


def main() -> int:
    """Run the hour; 0 if all steps succeeded, 1 if not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="gpu_hour.sh", description="What one GPU shows of the claims.")
    parser.add_argument("mode", nargs="?", choices=(*SECONDS, "both"), default="both")
    limits = ", ".join(f"{mode} {seconds:.0f}" for mode, seconds in SECONDS.items())
    parser.add_argument("--seconds", type=float, help=f"for all steps of the modes together ({limits})")
    parser.add_argument("--dry-run", action="store_true", help="the same road, tiny and on a CPU")
    parser.add_argument("--only", default="", help="these steps, as 1,6; step 0 is always run")
    parser.add_argument("--out", type=Path, help="records; both modes have folders there ($OUT, else in results)")
    parser.add_argument("--scratch", type=Path, help="folder for a store and two checkpoints (45 GB)")
    asked = parser.parse_args()
    modes = tuple(SECONDS) if asked.mode == "both" else (asked.mode,)
    times = dict.fromkeys(SECONDS, DRY_SECONDS) if asked.dry_run else SECONDS
    whole = sum(times[mode] for mode in modes)
    given = os.environ.get("OUT")
    base = asked.out or (Path(given) if given else RESULTS / "gpu-hour")
    alone = asked.out is not None and len(modes) == 1
    try:
        return run_hours(
            [
                Asked(
                    mode=mode,
                    seconds=times[mode] * (1.0 if asked.seconds is None else asked.seconds / whole),
                    dry=asked.dry_run,
                    only=asked.only,
                    out=(base if alone else base / mode).resolve(),
                    scratch=asked.scratch,
                )
                for mode in modes
            ]
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
