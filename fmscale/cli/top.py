"""`fmscale top RUN_FOLDER`: step, phase and place of every rank of a run, live."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fmscale.cli.output import JsonOption, cell, example, human_seconds, live, say, table

STALE_SECONDS = 30.0
"""Age of the states from which on the run has probably ended: a watchdog tells them every 2 s."""
app = typer.Typer()


@app.command(epilog=example("fmscale top runs/laptop", "fmscale top runs/laptop --once --json"))
def top(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="FOLDER/RUN of the run, on rank 0's machine.")],
    once: Annotated[bool, typer.Option("--once", help="Print the table once and end.")] = False,
    json: JsonOption = False,
) -> None:
    """Show where each rank of a run is: its step, its phase, the seconds in it, and its line of code.

    Ranks in an earlier step than others are marked, and ranks that tell
    nothing any more. Goes on until Ctrl-C.
    """
    if once or json:
        rows, title = _look(folder)
        if not json:
            say(title)
        table(rows, json)
        return
    with live() as show:
        while True:
            rows, title = _look(folder)
            show(title, rows)
            time.sleep(1)


def _look(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of the table, and the line above it."""
    from fmscale.runtime.sinks.jsonl import read_last
    from fmscale.runtime.watched import lagging, read_watched

    told, states = read_watched(folder)
    age, late = max(0.0, time.time() - told), lagging(states)
    rows = [
        {
            "rank": state["rank"],
            "host": state["host"],
            "step": state["step"],
            "phase": state["phase"],
            "seconds": round(state["seconds"] + age),
            "place": state["place"],
            "note": f"silent {state['silent']:.0f} s"
            if state["silent"] > STALE_SECONDS
            else "lags" * (state["rank"] in late),
        }
        for state in states
    ]
    rates = [
        f"{cell(value)} {name.removesuffix('_per_second')}/s"
        for record in read_last(folder / "metrics.jsonl")[-1:]
        for name, value in record.items()
        if name.endswith("_per_second")
    ]
    title = ", ".join([str(folder), *rates, f"told {human_seconds(age)} ago"])
    return rows, title + (": the run has ended, or rank 0 is stopped" if age > STALE_SECONDS else "")
