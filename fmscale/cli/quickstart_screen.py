"""Terminal of a quickstart: bars while it runs, and a last screen with its results."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fmscale.quickstart.acts import ACTS
from fmscale.quickstart.results import Report, bits, claims, verdict
from fmscale.quickstart.state import Screen
from fmscale.text import clean, printable_lines

TITLES = {
    "ingest": "1 ingest",
    "train": "2 train, 3 move half-way",
    "unbroken": "4 the same, unbroken",
    "evaluate": "5 held-out bits",
    "generate": "6 generate",
    "report": "7 report",
}
SPARKS = "▁▂▃▄▅▆▇█"
WIDTH = 110
"""Most columns that the last screen takes."""
LINES_SECONDS = 15.0
"""Pause between two lines about an act when output is not a terminal."""


@contextmanager
def make_screen(*, silent: bool) -> Iterator[Screen]:
    """Bars on a terminal, lines elsewhere, nothing if `silent`; on standard error."""
    console = Console(stderr=True, quiet=silent, soft_wrap=not sys.stderr.isatty())
    if silent or not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


class _Bars:
    """A bar for each act."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks = {act: progress.add_task(TITLES[act], total=None, start=False, note="") for act in ACTS}

    def begin(self, act: str) -> None:
        self._progress.start_task(self._tasks[act])

    def advance(self, act: str, done: float, total: float, note: str = "") -> None:
        self._progress.update(self._tasks[act], completed=done, total=total or None, note=escape(clean(note)))

    def end(self, act: str, note: str) -> None:
        self._progress.update(self._tasks[act], completed=1, total=1, note=escape(clean(note)))
        self._progress.stop_task(self._tasks[act])

    def tell(self, words: str) -> None:
        self._progress.console.print(f"  [cyan]•[/] {escape(clean(words))}", highlight=False)


class _Lines:
    """Lines, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._last = monotonic()

    def begin(self, act: str) -> None:
        self._print(f"{TITLES[act]} …")

    def advance(self, act: str, done: float, total: float, note: str = "") -> None:
        if monotonic() - self._last > LINES_SECONDS:
            share = f"{done / total:.0%} " if total else ""
            self._print(f"  {share}{note}")

    def end(self, act: str, note: str) -> None:
        self._print(f"  {note}")

    def tell(self, words: str) -> None:
        self._print(f"  {words}")

    def _print(self, words: str) -> None:
        self._last = monotonic()
        self._console.print(f"[{monotonic() - self._began:5.0f} s] {clean(words)}", highlight=False, markup=False)


def show_report(report: Report, folder: Path) -> None:
    """The last screen, on standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    width = min(console.width, WIDTH)
    parts: list[RenderableType] = [_verdicts(report), Text(), _curve(report, folder, width - 6), Text()]
    parts += [_columns(report), Text(f"On held-out text {verdict(report)}.", style="dim"), Text()]
    parts += [_completion(completion) for completion in report["completions"]]
    title = f"[bold]fmscale quickstart[/] in {report['wall_seconds']:.0f} s"
    console.print(Panel(Group(*parts), title=title, width=width, padding=(1, 2)))
    shown = escape(clean(_short(str(folder))))
    address = f"{_short(report['store'])}#{report['run']}"
    console.print(f"  Look at [bold]{shown}/report.html[/]; all numbers are in {shown}/report.json.", highlight=False)
    console.print("  Next, by hand:", style="dim")
    for command in (
        f"fmscale generate {address} 'def main('",
        f"fmscale checkpoint list {address}",
        f"fmscale dataset trace {address}@3",
    ):
        typer.echo(clean(f"    {command}"))


def _short(place: str) -> str:
    """A path or file URL below the working folder, relative to that folder; any other place unchanged."""
    path = Path(place.removeprefix("file://"))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else place


def _verdicts(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    for claim in claims(report):
        sign = "[green]✓[/]" if claim.ok else "[bold red]✗[/]"
        grid.add_row(sign, escape(claim.what), f"[bold]{escape(claim.value)}[/]")
    return grid


def _curve(report: Report, folder: Path, width: int) -> Text:
    """The loss as a line of blocks, with the place of the move marked."""
    from fmscale.train.compare import read_history

    steps = read_history(folder).steps
    losses = [float(steps[step]["loss"]) for step in sorted(steps)]
    room = max(10, min(width - 24, len(losses)))
    means = [_mean(losses[i * len(losses) // room : (i + 1) * len(losses) // room]) for i in range(room)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    text = Text(f"loss {losses[0]:.2f} ")
    moved = {min(room - 1, at * room // len(losses)) for at in report["resumed_at"]}
    for i, mean in enumerate(means):
        spark = SPARKS[round((mean - low) / span * (len(SPARKS) - 1))]
        text.append("┊" if i in moved else spark, style="bold yellow" if i in moved else "cyan")
    text.append(f" {losses[-1]:.2f}")
    return text


def _columns(report: Report) -> Columns:
    stored = {name: f"{value:.3f}" for name, value in bits(report).items()}
    stored["this model"] = f"[bold cyan]{stored['this model']}[/]"
    ranks = " → ".join(map(str, report["world_sizes"]))
    stages = " → ".join(map(str, report["zero_stages"]))
    run: dict[str, Any] = {
        "parameters": f"{report['parameters']:,}",
        "tokens": f"{report['tokens']:,} in {report['steps']} steps",
        "speed": f"{report['tokens_per_second']:,.0f} tokens/s",
        "ranks, ZeRO stage": f"{ranks}, {stages}",
        "checkpoints": f"{len(report['checkpoints'])}, {report['checkpoints'][-1]['bytes'] / 1e6:.1f} MB each",
    }
    return Columns([_small("held-out bits per byte", stored), _small("the run", run)], padding=(0, 6), expand=False)


def _small(title: str, values: dict[str, Any]) -> Table:
    grid = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        grid.add_row(name, str(value))
    return grid


def _completion(completion: dict[str, Any]) -> Group:
    """The end of the prompt, dim, and the first lines of the model's text."""
    text = Text(printable_lines("\n".join(completion["prompt"].splitlines()[-3:])) + "\n", style="dim")
    text.append(printable_lines("\n".join(completion["text"].splitlines()[:6])), style="cyan")
    return Group(Text(clean(completion["name"]), style="bold"), text, Text())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
