"""`fmscale report`: a page with the curves, the time and the events of runs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.output import JsonOption, example, print_json, say
from fmscale.errors import ConfigError

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale report runs/demo",
        "fmscale report runs/demo runs/other --to side-by-side.html --png charts",
    )
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs: train.folder/train.run.")],
    to: Annotated[
        Path | None, typer.Option(help="The page. Default: RUN/report.html, of several runs ./report.html.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw each chart as a PNG there; needs a Chromium.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make one HTML file of a run, or of several side by side; it opens without a network.

    Losses, throughput, MFU, data stall, checkpoint blocking and lag, each rank's times, goodput by parts, events. A run
    that still goes on or was killed is read as far as its records are whole.
    """
    from fmscale.report.png import browser, draw
    from fmscale.report.runs import MOST_RUNS, charts, render
    from fmscale.train.account import read_account

    if len(runs) > MOST_RUNS:
        raise ConfigError(
            "a report has a colour for each run, and there are too many",
            found=f"{len(runs)} runs",
            remedy=f"Name {MOST_RUNS} or fewer.",
        )
    if png is not None:
        browser()  # before the work, if there is none
    accounts = [read_account(run) for run in runs]
    names = Counter(account.name for account in accounts)
    # Two runs of one name in two folders are told apart by their paths.
    accounts = [
        account if names[account.name] == 1 else replace(account, name=str(run))
        for account, run in zip(accounts, runs, strict=True)
    ]
    path = to or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    try:
        path.write_text(render(accounts), encoding="utf-8")
        drawn = draw(charts(accounts), png) if png is not None else []
    except OSError as error:
        raise ConfigError(
            "the report cannot be written",
            found=f"{error.filename or path}: {error.strerror}",
            remedy="Give --to (and --png) a place in a folder that exists and can be written.",
        ) from error
    if json:
        found = [
            {"run": account.name, "steps": len(account.steps), "goodput": account.goodput, "seconds": account.seconds}
            for account in accounts
        ]
        print_json({"page": str(path), "pngs": list(map(str, drawn)), "runs": found})
        return
    for account in accounts:
        say(f"{account.name}: {len(account.steps):,} steps, goodput {account.goodput:.1%}")
    say(str(path))
    for each in drawn:
        say(str(each))
