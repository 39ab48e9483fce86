"""`fmscale bench kernels`: fmscale's kernels and every peer in one run, checked, then timed. In reading order:

`command.py` is the entry. `sizes.py`, `rows.py`, `attention_rows.py`, `loss_rows.py` and `memory_rows.py` list the
problems of the benchmark, `problems.py` the problems of the tuner. `peers.py` has the peers. `contest.py` measures
one problem, `contests.py` all problems in a worker process; `workshop.py` starts and replaces the worker, `serve.py`
is its program. `eager_loss.py` is the loss in plain torch. `timing.py` has the clocks and `verdict.py` the check of
numbers. `ceilings.py` measures the limits of the device, `roofline.py` draws them, `claims.py` has the targets,
`listing.py` and `report.py` write the output. `tune.py` is the tuner, `trial.py` its service in the worker.

This module imports nothing, as a worker starts often. The room needs torch and triton alone, and a checkout.
"""

from collections.abc import Sequence


def run_command(options: Sequence[str]) -> int:
    """Measure, list or tune, print the outcome, and return the exit status (2: nothing could be measured)."""
    from benchmarks.kernels.command import main

    return main(options)
