"""`fmscale compare`: compares two runs, and names the first step at which they differ."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmscale.cli.output import JsonOption, example, print_json, record, say, table

if TYPE_CHECKING:
    from fmscale.train.compare import Comparison

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale compare runs/demo runs/demo-resumed",
        "fmscale compare runs/two-ranks runs/three-ranks --tolerance 1e-3",
    )
)
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run: train.folder/train.run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Relative difference up to which numbers count as the same.")
    ] = 0.0,
    common: Annotated[
        bool, typer.Option("--common", help="Compare only the steps and samples that both have.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare two runs step by step: losses, gradient norms, tokens, evaluations, delivered samples.

    Exact, or within a tolerance (token counts and samples always exactly). Speeds are not compared. Exits
    with 1 if the runs differ, and says at which step they part.
    """
    from fmscale.train.compare import compare as compare_histories
    from fmscale.train.compare import read_history

    comparison = compare_histories(read_history(run_a), read_history(run_b), tolerance=tolerance, common=common)
    if json:
        first = comparison.first
        print_json({"same": comparison.same, "first": first and asdict(first), **asdict(comparison)})
    else:
        _show(comparison, tolerance)
    if not comparison.same:
        raise typer.Exit(1)


def _show(comparison: "Comparison", tolerance: float) -> None:
    how = "exactly" if comparison.exact else f"within {tolerance:g}"
    verdict = f"the runs agree {how}" if comparison.same else "the runs differ"
    if comparison.first:
        first = comparison.first
        verdict += f" from step {first.step} on: {first.what} {first.a} and {first.b}"
    values: dict[str, object] = {"verdict": verdict, "steps in both": comparison.steps}
    for side, ranges in comparison.only.items():
        which, what = side.split("_")
        values[f"{what} of the {'first' if which == 'a' else 'second'} alone"] = ranges
    if comparison.order_hashes:
        values["samples in both"] = comparison.samples
        values["order hash"] = " and ".join(dict.fromkeys(comparison.order_hashes))
    for note in comparison.notes:
        values[f"note {len(values)}"] = note
    record(values, json=False)
    if comparison.parts:
        rows = [
            {
                "metric": name,
                "parts at step": difference.step,
                "first run": difference.a,
                "second run": difference.b,
                "largest relative difference": comparison.largest.get(name),
            }
            for name, difference in sorted(comparison.parts.items(), key=lambda item: item[1].step)
        ]
        say()
        table(rows, json=False)
