"""`fmscale quickstart`: from text to a trained and measured model in minutes, with a report."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fmscale.cli.output import JsonOption, example, print_json, say, table
from fmscale.errors import ConfigError

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale quickstart",
        "fmscale quickstart life",
        "fmscale quickstart --corpus ~/texts --folder runs/texts --steps 600",
    )
)
def quickstart(
    tour: Annotated[
        Literal["text", "life"],
        typer.Argument(help="text: a model of a real corpus. life: a tiny model up to preferences."),
    ] = "text",
    folder: Annotated[
        Path | None,
        typer.Option(help="Where everything goes; its name is the run's. Default: runs/quickstart, runs/life."),
    ] = None,
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

    `life`, on a CPU: a tiny model is pretrained on sums, some of them worked, fine-tuned on chats, also by a LoRA, and
    trained on preferences; the report has its answers at once and step by step. The options below, except --folder and
    --json, are for `text`.
    """
    if tour == "life":
        _life(folder or Path("runs/life"), corpus or store or steps or cpu, json)
        return
    folder = folder or Path("runs/quickstart")
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


def _life(folder: Path, others: Any, json: bool) -> None:
    from fmscale.quickstart.life.acts import run_life, table_rows

    if others:
        raise ConfigError(
            "`quickstart life` has its own data and steps", found=others, remedy="Leave these options out."
        )
    report = run_life(folder, lambda words: say(words, err=True))
    if json:
        print_json(report)
        return
    table(table_rows(report), json)
    say(f"{report['wall_seconds']:.0f} s; {folder / 'report.html'} has the answers side by side")
