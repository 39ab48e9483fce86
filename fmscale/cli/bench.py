"""`fmscale bench`: medians and spread of fmscale and its peers, interleaved in one run; lost rows are shown too."""

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.output import JsonOption, example
from fmscale.errors import ConfigError

app = typer.Typer()

BENCHMARKS = ("loader", "checkpoint", "kernels", "train", "ingest", "campaigns", "life", "goodput", "clusters")


def _find_checkout() -> None:
    """Put the checkout of this package on the search path. Raises ConfigError for an installed wheel."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / "benchmarks" / "harness.py").is_file():
        found, remedy = str(root), "Clone the repository and run `pip install -c constraints.txt -e .` in it."
        raise ConfigError("benchmarks run from a checkout, this is an installed package", found=found, remedy=remedy)
    sys.path.insert(0, str(root))


@app.command(
    epilog=example(
        "fmscale bench loader --quick",
        "fmscale bench loader --only W5,W6",
        "fmscale bench kernels --list",
        "fmscale bench --read benchmarks/results/gpu-hour/train",
    )
)
def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")] = "",
    quick: Annotated[bool, typer.Option(help="The same code on less data, below 3 minutes.")] = False,
    check: Annotated[bool, typer.Option(help="Exit with 1 when a claim is not met.")] = False,
    json: JsonOption = False,
    only: Annotated[
        str,
        typer.Option(
            help="loader, life, clusters: only these claims, as W5,W1.over_cache; to NAME.part.json. "
            "kernels --tune: only ops and cases that this regular expression finds."
        ),
    ] = "",
    list_: Annotated[bool, typer.Option("--list", help="kernels: which backend serves which op here.")] = False,
    tune: Annotated[bool, typer.Option(help="kernels: measure configurations, write the table.")] = False,
    seconds: Annotated[float | None, typer.Option(help="kernels --tune: begin nothing after this time.")] = None,
    again: Annotated[bool, typer.Option(help="kernels --tune: also what the table has.")] = False,
    read: Annotated[
        Path | None, typer.Option(help="Instead of a name: the folder that benchmarks/gpu_hour.sh wrote, on a GPU.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="--read: check the records, write nothing.")] = False,
) -> None:
    """Measure a claim: ours and the peers in one run. Writes benchmarks/results/NAME.json."""
    _find_checkout()
    options = {"quick": quick, "check": check, "json": json, "only": only, "list_": list_, "tune": tune}
    options |= {"seconds": seconds, "again": again, "read": read, "dry_run": dry_run}
    importlib.import_module("benchmarks.command").run_benchmark(name, **options)
