"""The command: measure, list or tune.

python -m fmscale.kernels.bench            everything, at most 8 minutes on one GPU
python -m fmscale.kernels.bench --quick    the same code on less, below 3 minutes
python -m fmscale.kernels.bench --list     what `backend="auto"` takes on this machine, and why
python -m fmscale.kernels.bench --tune     measure every configuration and write the tuning table
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fmscale.kernels.bench import report
from fmscale.kernels.bench.attention_rows import attention_rows
from fmscale.kernels.bench.ceilings import Ceilings, measure_ceilings
from fmscale.kernels.bench.claims import assemble
from fmscale.kernels.bench.contest import Row, Run, hold, unmeasured
from fmscale.kernels.bench.listing import listing
from fmscale.kernels.bench.loss_rows import loss_rows
from fmscale.kernels.bench.memory_rows import memory_rows
from fmscale.kernels.bench.roofline import roofline
from fmscale.kernels.bench.sizes import FULL, QUICK, Sizes
from fmscale.kernels.bench.timing import Clock, CudaClock, describe
from fmscale.kernels.bench.tune import tune
from fmscale.kernels.dispatch import TUNED, write_table

RESULTS = report.CHECKOUT / "benchmarks" / "results"
BUDGET = {False: 450.0, True: 160.0}
"""Seconds after which no further row is begun, full and quick: it must end within 8 and 3 minutes."""
NO_GPU = "no CUDA device: kernels run on a GPU, and nothing is estimated"


def all_rows(sizes: Sizes) -> list[Row]:
    """Every row, the cheap and the decisive ones first, so that a slow machine loses the least."""
    return [*memory_rows(sizes), *loss_rows(sizes), *reversed(attention_rows(sizes))]


def measure(
    rows: Sequence[Row], device: torch.device, clock: Clock, *, repeats: int, budget: float,
    say: Callable[[str], None],
) -> list[Run]:  # fmt: skip
    """Every row's run, in the rows' order; rows beyond the budget are not measured and say so."""
    begin = time.monotonic()
    runs = []
    for row in rows:
        if time.monotonic() - begin > budget:
            runs.append(unmeasured(row, f"not measured: the time budget of {budget:g} s was spent"))
            continue
        try:
            runs.append(hold(row, device, clock, repeats=repeats))
        except Exception as error:
            runs.append(unmeasured(row, describe(error)))
        rates = ", ".join(f"{name} {rate:.4g}" for name, rate in runs[-1].rates.items())
        say(f"{row.id} {row.variant}: {rates or runs[-1].reasons} {row.unit if rates else ''}")
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 1 when --check found a claim not ok, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="fmscale bench kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the same code on less data")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 when a claim is not ok")
    parser.add_argument("--list", action="store_true", help="which backend serves which op here, and why")
    parser.add_argument("--tune", action="store_true", help="measure configurations, write the table")
    parser.add_argument("--output", type=Path, help="folder for results, or for the table with --tune")
    asked = parser.parse_args(arguments)
    if asked.list:
        print(listing())
        return 0
    if asked.tune:
        return _tune(asked.output or TUNED)
    return _bench(asked.quick, asked.json, asked.check, asked.output or RESULTS)


def _tune(folder: Path) -> int:
    if not torch.cuda.is_available():
        print(f"cannot tune: {NO_GPU}", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_properties(0).name
    module = "fmscale.kernels.bench.problems"
    table = tune(module, gpu, report.versions(), lambda line: print(line, flush=True))
    print(f"{len(table.entries)} entries, {len(table.rejected)} rejected: {write_table(table, folder)}")
    return 0


def _bench(quick: bool, as_json: bool, check: bool, folder: Path) -> int:
    ceilings: Ceilings | None = None
    runs: list[Run] = []
    rows = all_rows(QUICK if quick else FULL)
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        clock = CudaClock(device)
        ceilings = measure_ceilings(device, clock)
        print(f"copy {ceilings.copy:.3f} TB/s, matmul {ceilings.matmul:.0f} TFLOP/s", file=sys.stderr)
        runs = measure(
            rows, device, clock, repeats=10 if quick else 20, budget=BUDGET[quick],
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    else:
        runs = [unmeasured(row, f"not measured: {NO_GPU}") for row in rows]
    limits = dataclasses.asdict(ceilings) if ceilings else None
    outcome = report.result(assemble(_in_order(runs), ceilings), quick=quick, extra={"ceilings": limits})
    print(report.as_json(outcome) if as_json else report.table(outcome))
    if ceilings is None:
        print(f"nothing was measured: {NO_GPU}. Run this on a machine with one.", file=sys.stderr)
        return 2
    name = "kernels.quick" if quick else "kernels"
    report.write(folder / f"{name}.json", report.as_json(outcome))
    report.write(folder / f"{name}_roofline.svg", roofline(runs, ceilings, f"{outcome['machine']['gpu']}"))
    print(f"written to {folder / name}.json and {name}_roofline.svg", file=sys.stderr)
    return 1 if check and any(claim["ok"] is not True for claim in outcome["claims"]) else 0


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs with the largest problem of each claim last, which `claim` takes for the headline."""
    return sorted(runs, key=lambda run: run.flops)
