"""`fmscale bench`: medians and spread of fmscale and its peers, interleaved in one run; lost rows are shown too."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fmscale.cli.output import JsonOption, example, say, table
from fmscale.errors import ConfigError

app = typer.Typer()

BENCHMARKS = ("loader", "checkpoint", "kernels", "train", "ingest", "campaigns", "life", "goodput", "clusters")
COLUMNS = ("id", "what", "unit", "ours", "peers", "limit", "ratio", "target", "ok")


def checkout() -> Path:
    """Put the checkout of this package on the search path, and return it. Raises ConfigError for an installed wheel."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / "benchmarks" / "harness.py").is_file():
        found, remedy = str(root), "Clone the repository and run `pip install -c constraints.txt -e .` in it."
        raise ConfigError("benchmarks run from a checkout, this is an installed package", found=found, remedy=remedy)
    sys.path.insert(0, str(root))
    return root


def _row(claim: dict[str, Any]) -> dict[str, Any]:
    peers = (f"{n} did not run" if v is None else f"{n} {v:,.4g}" for n, v in claim["peers"].items())
    shown = {name: claim[name] for name in COLUMNS}
    return {**shown, "peers": ", ".join(peers)}


def read_hour(folder: Path, *, dry_run: bool) -> list[dict[str, Any]]:
    """The claims of an hour on a GPU, also written to benchmarks/results and README.md unless `dry_run`."""
    root = checkout()
    reading = importlib.import_module("benchmarks.gpu_hour.reading")
    hour = reading.read(folder)
    for note in hour.notes:
        say(note, err=True)
    if not dry_run:
        results = root / "benchmarks" / "results"
        say(f"written to {reading.keep(hour, results)}, and to README.md's table", err=True)
        importlib.import_module("benchmarks.gpu_hour.table").fill(root / "README.md", results)
    claims: list[dict[str, Any]] = hour.document["claims"]
    return claims


def _show(claims: list[dict[str, Any]], *, json: bool, check: bool) -> None:
    table(claims if json else [_row(claim) for claim in claims], json)
    if check and not all(claim["ok"] for claim in claims):
        raise typer.Exit(1)


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
    elsewhere = quick or bool(only) or list_ or tune or again or seconds is not None
    if read is not None and not name and not elsewhere:
        _show(read_hour(read, dry_run=dry_run), json=json, check=check)
        return
    if read is not None or dry_run:
        raise ConfigError(
            "--read goes without a name, and with --dry-run, --check and --json alone",
            found=name or "other options",
            remedy="Use `fmscale bench --read FOLDER`, with --dry-run to check and write nothing.",
        )
    if name not in BENCHMARKS:
        raise ConfigError("no such benchmark", found=name, remedy=f"One of: {', '.join(BENCHMARKS)}.")
    checkout()
    benchmark = importlib.import_module(f"benchmarks.{name}")
    tuning = tune and name == "kernels"
    if (seconds is not None or again) and not tuning:
        raise ConfigError(
            "--seconds and --again are for tuning", found=name, remedy="Use `fmscale bench kernels --tune`."
        )
    words = [word.strip() for word in only.split(",") if word.strip()]
    run = getattr(benchmark, "run", None)
    if words and not tuning and (run is None or "only" not in inspect.signature(run).parameters):
        remedy = "Leave out --only; loader, life and clusters have it."
        raise ConfigError(f"{name} is measured as a whole", found=only, remedy=remedy)
    if hasattr(benchmark, "run_command"):  # it has options and output of its own
        flags = {"quick": quick, "check": check, "json": json, "list": list_, "tune": tune, "again": again}
        given = [f"--{option}" for option, on in flags.items() if on]
        values = {"--only": only or None, "--seconds": seconds}
        given += [f"{option}={value}" for option, value in values.items() if value is not None]
        raise typer.Exit(benchmark.run_command(given))
    if list_ or tune:
        raise ConfigError(
            f"{name} has no --list or --tune", found=name, remedy="Use them with `fmscale bench kernels`."
        )
    _show(benchmark.run(quick=quick, **({"only": words} if words else {})), json=json, check=check)
