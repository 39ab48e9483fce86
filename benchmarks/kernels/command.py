"""The command: measure, list or tune.

python -m benchmarks.kernels            everything, at most 8 minutes on one GPU
python -m benchmarks.kernels --quick    the same code on less, below 3 minutes
python -m benchmarks.kernels --list     what `backend="auto"` takes on this machine, and why
python -m benchmarks.kernels --tune     measure every configuration and write the tuning table; goes on
                                           where an earlier run stopped
"""

import argparse
import dataclasses
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fmscale.kernels.dispatch import TUNED
from fmscale.kernels.launch import HAVE_TRITON, INTERPRETED

from benchmarks.kernels import report, rows
from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.claims import assemble
from benchmarks.kernels.contest import ContestRow, Run, unmeasured
from benchmarks.kernels.contests import Budget, measure
from benchmarks.kernels.listing import listing
from benchmarks.kernels.roofline import roofline
from benchmarks.kernels.tune import known_table, tune, write_table

RESULTS = report.CHECKOUT / "benchmarks" / "results"
BUDGET = {False: (430.0, 460.0), True: (140.0, 165.0)}
"""Seconds until no row, contestant or round begins, and until running contests are ended: full and quick."""


def obstacle() -> str | None:
    """Reason why this machine can measure nothing, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device: kernels run on a GPU, and nothing is estimated"
    if not HAVE_TRITON:
        return "triton is not installed"
    if INTERPRETED:
        return "TRITON_INTERPRET is set: kernels would be interpreted on the CPU"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 1 when --check found a claim not ok, 2 where this machine can measure nothing."""
    parser = argparse.ArgumentParser(prog="fmscale bench kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the same code on less data")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 when a claim is not ok")
    parser.add_argument("--list", action="store_true", help="which backend serves which op here, and why")
    parser.add_argument("--tune", action="store_true", help="measure configurations, write the table")
    parser.add_argument("--only", type=_pattern, metavar="REGEX", help='these rows or buckets, as "attention .*E128"')
    parser.add_argument("--seconds", type=float, metavar="N", help="begin nothing after N seconds")
    parser.add_argument("--again", action="store_true", help="with --tune: also what the table has")
    parser.add_argument("--output", type=Path, help="folder for results, or for the table with --tune")
    asked = parser.parse_args(arguments)
    if asked.list:
        print(listing())
        return 0
    if asked.tune:
        seconds = math.inf if asked.seconds is None else asked.seconds
        return _tune(asked.output or TUNED, only=asked.only or "", seconds=seconds, again=asked.again)
    if asked.again:
        parser.error("--again goes with --tune")
    # a part of the rows must not replace the results of all rows
    folder = asked.output or (None if asked.only or asked.seconds else RESULTS)
    return _bench(asked.quick, asked.json, asked.check, folder, only=asked.only or "", seconds=asked.seconds)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


def _tune(folder: Path, *, only: str, seconds: float, again: bool) -> int:
    why = obstacle()
    if why is not None:
        _say(f"nothing was tuned: {why}. Run this on a machine with a GPU.")
        return 2
    gpu, versions = torch.cuda.get_device_properties(0).name, report.versions()
    table = tune(
        "benchmarks.kernels.problems:problems", gpu, versions, _say,
        save=lambda table: write_table(table, folder), known=known_table(folder, gpu, str(versions["triton"])),
        again=again, only=only, seconds=seconds,
    )  # fmt: skip
    print(f"{len(table.entries)} entries, {len(table.rejected)} rejected: {write_table(table, folder)}")
    return 0


def _bench(
    quick: bool, as_json: bool, check: bool, folder: Path | None, *, only: str, seconds: float | None
) -> int:  # fmt: skip
    why, ceilings = obstacle(), None
    wanted = re.compile(only)

    def asked(row: ContestRow) -> bool:
        return wanted.search(f"{row.id} {row.variant}") is not None

    if why is None:
        soft, hard = BUDGET[quick] if seconds is None else (seconds, seconds + BUDGET[quick][1] - BUDGET[quick][0])
        now = time.monotonic()
        ceilings, runs = measure(
            f"{rows.__name__}:{'quick' if quick else 'full'}", repeats=10 if quick else 20,
            budget=Budget(soft=now + soft, hard=now + hard), say=_say, only=asked,
        )  # fmt: skip
    else:
        every = rows.quick() if quick else rows.full()
        runs = [unmeasured(row, f"not measured: {why}") for row in every if asked(row)]
    outcome = conclude(runs, ceilings, quick=quick, folder=folder)
    print(report.as_json(outcome) if as_json else report.table(outcome))
    if why is not None:
        _say(f"nothing was measured: {why}. Run this on a machine with a GPU.")
        return 2
    return 1 if check and any(claim["ok"] is not True for claim in outcome["claims"]) else 0


def conclude(runs: Sequence[Run], ceilings: Ceilings | None, *, quick: bool, folder: Path | None) -> dict[str, Any]:
    """The result; with `ceilings`, also write the result and the roofline plot to `folder`, if there is one."""
    # the largest problem of each claim comes last: `claim` takes it for the headline
    ordered = sorted(runs, key=lambda run: run.flops)
    limits = dataclasses.asdict(ceilings) if ceilings else None
    outcome = report.result(assemble(ordered, ceilings), quick=quick, extra={"ceilings": limits})
    if ceilings is not None and folder is not None:
        name = "kernels.quick" if quick else "kernels"
        report.write(folder / f"{name}.json", report.as_json(outcome))
        report.write(folder / f"{name}_roofline.svg", roofline(ordered, ceilings, f"{outcome['machine']['gpu']}"))
        _say(f"written to {folder / name}.json and {name}_roofline.svg")
    return outcome
