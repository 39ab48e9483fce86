"""Output of the verbs: tables or JSON, progress on standard error, errors with a remedy.

Results go to standard output, everything else to standard error, so that `fmscale ... --json | jq` works.
"""

import json as jsonlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from fmscale.errors import FmscaleError
from fmscale.text import clean, printable, printable_lines, scrub
from fmscale.text import human_bytes as human_bytes

PIPE_WIDTH = 10_000
"""Columns assumed where output is not a terminal: rich would cut cells at 80 otherwise."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
"""Type of a verb's `json: JsonOption = False` parameter."""


def example(*commands: str) -> str:
    """The epilog that shows how a verb is called: pass it as `epilog=` of the command."""
    return "Example:\n\n" + "\n\n".join(f"  {command}" for command in commands)


def table(rows: Sequence[Mapping[str, Any]], json: bool, *, title: str = "") -> None:
    """Print rows as a table, or as a JSON list of objects. Columns are the keys in order of appearance."""
    if json:
        print_json([dict(row) for row in rows])
    else:
        _console(sys.stdout).print(_grid(rows, title))


def _grid(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    grid = Table(title=title or None, box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = any(isinstance(row.get(column), (int, float)) for row in rows)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(cell(row.get(column))) for column in columns))
    return grid


@contextmanager
def live() -> Iterator[Callable[[str, Sequence[Mapping[str, Any]]], None]]:
    """Function that shows a line and rows in the place of those before, until the block ends, also by Ctrl-C."""
    with Live(console=_console(sys.stdout), auto_refresh=False) as shown, suppress(KeyboardInterrupt):
        yield lambda line, rows: shown.update(Group(Text(clean(line)), _grid(rows)), refresh=True)


def record(values: Mapping[str, Any], json: bool) -> None:
    """Print one object: a line for each key, or a JSON object."""
    if json:
        print_json(dict(values))
        return
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for key, value in values.items():
        grid.add_row(escape(clean(key)), escape(cell(value)))
    _console(sys.stdout).print(grid)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON on standard output; a value of a type that JSON lacks becomes its string.
    Characters that a terminal would obey, or cannot show, are escapes of JSON.
    """
    encoding = sys.stdout.encoding or "ascii"
    text = jsonlib.dumps(value, indent=2, ensure_ascii=not encoding.lower().startswith("utf"), default=str)
    typer.echo("\n".join(re.sub(r"[^ -~]", _as_json, line) for line in text.split("\n")))


def _as_json(found: re.Match[str]) -> str:
    return found[0] if printable(found[0]) == found[0] else jsonlib.dumps(found[0])[1:-1]


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line; names in it can neither steer the terminal nor begin a line, and credentials are left out."""
    typer.echo(clean(text), err=err)


def write(text: str) -> None:
    """Write a piece of a model's text at once: as it is to a file or pipe, without control characters to a terminal."""
    sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text whose line breaks are its own."""
    for line in scrub(text).split("\n"):
        say(line, err=err)


def styled_lines(runs: Sequence[tuple[str, bool]]) -> None:
    """Print texts one behind the other, with their own line breaks; marked texts are green, or stand in [[ ]]."""
    console = _console(sys.stdout)
    colour, text = console.is_terminal and not console.no_color, Text()
    for part, marked in runs:
        shown = printable_lines(scrub(part))
        text.append(f"[[{shown}]]" if marked and not colour else shown, "green" if marked else "dim")
    console.print(text, soft_wrap=True)


def cell(value: Any) -> str:
    """A table cell: integers grouped by three, floats with four digits, None as a dash, names as `clean` shows them."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        case list() | tuple():
            return ", ".join(cell(item) for item in value)
        case _:
            return clean(str(value))


def human_seconds(seconds: float) -> str:
    """A duration in everyday units: 5400 -> '90 min'."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


class Progress:
    """A progress bar, or nothing where output is quiet. Any thread may call its methods."""

    def __init__(self, bar: RichProgress, description: str, total: float | None) -> None:
        self._bar = bar
        self._task = bar.add_task(escape(clean(description)), total=total)

    def advance(self, amount: float = 1) -> None:
        self._bar.advance(self._task, amount)

    def update(self, description: str, done: float, total: float) -> None:
        """Set the bar's description, progress and total; a `total` of 0 keeps the last total."""
        self._bar.update(self._task, description=escape(clean(description)), completed=done, total=total or None)


@contextmanager
def progress(description: str, total: float | None = None, *, json: bool = False, unit: str = "") -> Iterator[Progress]:
    """A progress bar on standard error while the block runs.

    `unit="bytes"` shows sizes and speed; `total=None` shows a bar without an end. Silent with `json`, or where
    standard error is not a terminal.
    """
    console = _console(sys.stderr)
    console.quiet = json or not console.is_terminal
    counted: list[ProgressColumn] = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *counted, TimeElapsedColumn(), TimeRemainingColumn()]
    with RichProgress(*columns, console=console, disable=console.quiet) as bar:
        yield Progress(bar, description, total)


def print_error(error: FmscaleError) -> None:
    """Print an error's cause, found value and remedy to standard error."""
    console = _console(sys.stderr)
    console.print(f"[bold red]error:[/] {escape(error.cause)}", highlight=False, soft_wrap=True)
    if error.found is not None:
        console.print(f"  found:  {escape(clean(str(error.found)))}", highlight=False, soft_wrap=True)
    if error.remedy:
        console.print(f"  remedy: {escape(error.remedy)}", highlight=False, soft_wrap=True)


def _console(stream: IO[str]) -> Console:
    console = Console(file=stream)
    return console if console.is_terminal else Console(file=stream, width=PIPE_WIDTH)
