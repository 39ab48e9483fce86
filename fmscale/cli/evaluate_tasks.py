"""The part of `fmscale evaluate` that runs tasks: several runs, tasks and programs side by side."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmscale.cli.model import open_model
from fmscale.cli.output import print_json, progress, say, table
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.infer.prompt import ProgramConfig
    from fmscale.infer.tasks import TaskResult


def evaluate_tasks(
    addresses: Sequence[str],
    tasks: Sequence[str],
    programs: Sequence[str],
    *,
    to: Path | None,
    device: str,
    precision: str | None,
    json: bool,
    **options: Any,
) -> None:
    """Evaluate each run in each task, asked by each program, and print a table or JSON; `to` gets all documents, and
    `options` are those of `evaluate_task`.
    """
    from fmscale.infer.prompt import load_program
    from fmscale.infer.tasks import evaluate_task, load_task

    loaded = [load_task(name) for name in tasks]
    ways: list[tuple[str, ProgramConfig | None]] = [(name, load_program(name)) for name in programs]
    ways = ways or [("", None)]
    cells: list[tuple[str, str, TaskResult]] = []
    for address in addresses:
        trained = open_model(address, device, precision)
        for task in loaded:
            for name, program in ways:
                with progress(f"{trained.run}, {task.name}", json=json) as bar:
                    result = evaluate_task(trained, task, program=program, progress=bar.advance, **options)
                cells.append((address, name, result))
    if to is not None:
        _write(to, cells)
    if json:
        print_json([{"address": a, "asked_by": name or None, **result.as_json()} for a, name, result in cells])
        return
    _print(addresses, cells)


def _print(addresses: Sequence[str], cells: "Sequence[tuple[str, str, TaskResult]]") -> None:
    runs = {address: address.rpartition("#")[2] for address in addresses}
    if len(set(runs.values())) < len(runs):
        runs = {address: address for address in addresses}
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for address, name, result in cells:
        for metric in result.metrics:
            key = (result.report["task"], name, metric.name)
            by = {"by": name} if name else {}
            row = rows.setdefault(key, {"task": key[0], **by, "metric": metric.name, "n": metric.n})
            text = f"{metric.value:.4f}"
            if metric.low is not None:
                text += f"  {metric.hits}/{metric.n}  [{metric.low:.3f}, {metric.high:.3f}]"
            row[runs[address]] = text
    table(list(rows.values()), False)
    say("In brackets: Wilson's 95 % interval.")
    for address in addresses:
        first = next(result.report for a, _, result in cells if a == address)
        say(f"{runs[address]}: step {first['step']}, weights {first['weights'][:16]}", err=True)


def _write(path: Path, cells: "Sequence[tuple[str, str, TaskResult]]") -> None:
    """A line for each report, followed by a line for each of its documents."""
    lines = []
    for address, name, result in cells:
        head = {"address": address, "asked_by": name or None, **result.as_json()}
        own = {"run": result.report["run"], "task": result.report["task"], "asked_by": name or None}
        lines += [head, *({**own, **row} for row in result.documents)]
    try:
        path.write_text("".join(jsonlib.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "The results cannot be written", found=f"{path}: {error.strerror}", remedy="Name another file."
        ) from error
