"""`fmscale bench`: the choice of a benchmark by the verb's options, and the table of its claims."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import typer

from fmscale.cli.bench import BENCHMARKS
from fmscale.cli.output import say, table
from fmscale.errors import ConfigError

COLUMNS = ("id", "what", "unit", "ours", "peers", "limit", "ratio", "target", "ok")


def run_benchmark(
    name: str,
    *,
    quick: bool,
    check: bool,
    json: bool,
    only: str,
    list_: bool,
    tune: bool,
    seconds: float | None,
    again: bool,
    read: Path | None,
    dry_run: bool,
) -> None:
    """Run the benchmark of this name, or read the records of an hour on a GPU. The options are those of the verb.

    Raises ConfigError for an unknown name or options that do not fit, typer.Exit with 1 for a claim that is not met.
    """
    elsewhere = quick or bool(only) or list_ or tune or again or seconds is not None
    if read is not None and not name and not elsewhere:
        _show(_read_hour(read, dry_run=dry_run), json=json, check=check)
        return
    if read is not None or dry_run:
        raise ConfigError(
            "--read goes without a name, and with --dry-run, --check and --json alone",
            found=name or "other options",
            remedy="Use `fmscale bench --read FOLDER`, with --dry-run to check and write nothing.",
        )
    if name not in BENCHMARKS:
        raise ConfigError("no such benchmark", found=name, remedy=f"One of: {', '.join(BENCHMARKS)}.")
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


def _row(claim: dict[str, Any]) -> dict[str, Any]:
    peers = (f"{n} did not run" if v is None else f"{n} {v:,.4g}" for n, v in claim["peers"].items())
    shown = {name: claim[name] for name in COLUMNS}
    return {**shown, "peers": ", ".join(peers)}


def _read_hour(folder: Path, *, dry_run: bool) -> list[dict[str, Any]]:
    """The claims of an hour on a GPU, also written to benchmarks/results and README.md unless `dry_run`."""
    reading = importlib.import_module("benchmarks.gpu_hour.reading")
    hour = reading.read(folder)
    for note in hour.notes:
        say(note, err=True)
    if not dry_run:
        root = Path(__file__).resolve().parent.parent
        results = root / "benchmarks" / "results"
        say(f"written to {reading.keep(hour, results)}, and to README.md's table", err=True)
        importlib.import_module("benchmarks.gpu_hour.table").fill(root / "README.md", results)
    claims: list[dict[str, Any]] = hour.document["claims"]
    return claims


def _show(claims: list[dict[str, Any]], *, json: bool, check: bool) -> None:
    table(claims if json else [_row(claim) for claim in claims], json)
    if check and not all(claim["ok"] for claim in claims):
        raise typer.Exit(1)
