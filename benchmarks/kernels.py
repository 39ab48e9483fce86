"""`fmscale bench kernels`: the command that also runs as `python -m fmscale.kernels.bench`.

Its code is in `kernels/bench/`, because it must run with only torch and triton installed; there are no figures without
a GPU.
"""

from collections.abc import Sequence

from fmscale.kernels.bench.command import main


def run_command(options: Sequence[str]) -> int:
    """Measure, list or tune, print the outcome, and return the exit status (2: nothing could be measured)."""
    return main(options)
