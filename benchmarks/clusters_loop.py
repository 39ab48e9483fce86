"""R5.loop: CPU time of the training thread outside forward, backward and optimizer, and its waits for other ranks
between an optimizer and the next forward: two real ranks under the real launcher, a tiny model, CPUs.

    python -m benchmarks.clusters_loop [--quick]
"""

import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.clusters_rank import run_ranks_of, small_run
from benchmarks.harness import Claim

STEPS = {False: 240, True: 60}
WARM = 20
"""First steps, which do not count."""
TARGET = 3.0


def loop_claims(*, quick: bool) -> list[Claim]:
    """R5: milliseconds a step, and steps with a wait. Records are written at every step; no step saves."""
    with tempfile.TemporaryDirectory(prefix="fmscale-loop-") as place:
        config = small_run(Path(place), STEPS[quick])
        ranks = run_ranks_of("loop", config, Path(place) / "ranks")
    cpu = [1000 * value for rank in ranks for value in rank["cpu"][WARM:]]
    # The last steps have the run's end behind them.
    waited = Counter(name for rank in ranks for names in rank["waits"][WARM:-2] for name in names)
    shown = ", ".join(f"{count} {name}" for name, count in waited.items()) or "none"
    middle = statistics.median(cpu)
    return [
        Claim(
            id="R5.loop",
            what=f"CPU of the training thread outside forward, backward and optimizer, median of {len(cpu)} steps of 2 "
            f"ranks (95 % of them within {sorted(cpu)[int(0.95 * len(cpu))]:.2f} ms)",
            unit="ms a step",
            ours=middle,
            ratio=middle,
            target=f"<= {TARGET}",
            ok=middle <= TARGET,
            runs=[{"system": "fmscale", "value": value} for value in cpu],
        ),
        Claim(
            id="R5.waits",
            what=f"waits for gloo or the store between an optimizer and the next forward: {shown}",
            unit="waits",
            ours=float(waited.total()),
            ratio=float(waited.total()),
            target="0",
            ok=not waited,
        ),
    ]


if __name__ == "__main__":
    for claim in loop_claims(quick="--quick" in sys.argv):
        print(claim.id, claim.ours, claim.unit, claim.what)
