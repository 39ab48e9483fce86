"""Tables, JSON and progress on both streams, and in a pipe."""

import json
from typing import IO, Any

import pytest
from rich.console import Console

from fmscale.cli import output
from fmscale.cli.output import human_bytes, progress, record, table

ROWS: list[dict[str, Any]] = [{"name": "a" * 300, "tokens": 1234567, "share": 0.25}, {"name": "[red]b", "tokens": None}]


def test_table_keeps_every_cell_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table(ROWS, json=False)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "tokens", "share"]
    assert first.split() == ["a" * 300, "1,234,567", "0.25"]
    assert second.split() == ["[red]b", "-", "-"]


def test_json_holds_the_values_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    table(ROWS, json=True)
    assert json.loads(capsys.readouterr().out) == ROWS
    record(ROWS[0], json=True)
    assert json.loads(capsys.readouterr().out) == ROWS[0]


def test_record_prints_a_line_for_each_key(capsys: pytest.CaptureFixture[str]) -> None:
    record({"dataset": "docs", "commits": [1, 2]}, json=False)
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["dataset", "docs"],
        ["commits", "1, 2"],
    ]


@pytest.mark.parametrize("unit", ["", "bytes"])
def test_progress_draws_on_a_terminal_only(
    unit: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("reading", 3, unit=unit) as bar:
        bar.advance(3)
    assert capsys.readouterr() == ("", "")

    def terminal(stream: IO[str]) -> Console:
        return Console(file=stream, force_terminal=True, width=100)

    monkeypatch.setattr(output, "_console", terminal)
    with progress("reading", 3, unit=unit) as bar:
        bar.advance(2)
        bar.update("[x] still", 2, 3)
        bar.advance(1)
    shown = capsys.readouterr()
    assert "[x] still" in shown.err
    assert "3/3" in shown.err
    assert shown.out == ""
    with progress("reading", 3, json=True, unit=unit) as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_human_bytes() -> None:
    assert [human_bytes(size) for size in (0, 1023, 1536, 2**40)] == ["0 B", "1023 B", "1.5 KiB", "1.0 TiB"]
