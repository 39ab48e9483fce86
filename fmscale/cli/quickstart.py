"""`fmscale quickstart`: from text to a trained and measured model in minutes, with a report."""

from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.output import JsonOption, example, print_json, say

app = typer.Typer()


@app.command(
    epilog=example("fmscale quickstart", "fmscale quickstart --corpus ~/texts --folder runs/texts --steps 600")
)
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where everything goes; its name is the run's.")] = Path(
        "runs/quickstart"
    ),
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Files or folders of text to train on; may be repeated. Default: Python's standard library."),
    ] = None,
    store: Annotated[str | None, typer.Option(help="Where the store is. Default: FOLDER/store.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps. Default: the config's.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use GPUs.")] = False,
    json: JsonOption = False,
) -> None:
    """Ingest real text, train on it, move the run to other ranks half-way, compare it with one that nothing stopped,
    generate, and report.

    Two ranks at ZeRO stage 2 are stopped by a signal; one rank at stage 3 goes on (with GPUs: one rank each, then
    half of them). Writes report.json and report.html. Run again it goes on where it was, or shows the report again.
    Ends with status 1 if something that must come out did not. How well the model does is no such thing: a small
    corpus is warned of, and the report says who stores the held-out text in fewer bits.
    """
    from fmscale.cli.quickstart_screen import make_screen, show_report
    from fmscale.quickstart.acts import run_quickstart
    from fmscale.quickstart.results import claims
    from fmscale.quickstart.settings import choose, count_gpus

    gpus = 0 if cpu else count_gpus()
    settings = choose(folder=folder, store=store, corpus=tuple(corpus or ()), steps=steps, gpus=gpus)
    with make_screen(silent=json) as screen:
        report = run_quickstart(settings, screen)
    if json:
        print_json(report)
    else:
        show_report(report, settings.folder)
    wrong = [claim for claim in claims(report) if not claim.ok]
    for claim in wrong:
        say(f"did not come out: {claim.what}: {claim.value}", err=True)
    if wrong:
        raise typer.Exit(1)
