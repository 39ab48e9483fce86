"""The command line for a user: help, version, errors, and no slow imports."""

import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import fmscale
from fmscale.cli import launch
from fmscale.cli.main import build_app
from fmscale.errors import ConfigError


def run(app: typer.Typer, *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_version() -> None:
    assert run(build_app(), "--version") == (0, f"fmscale {fmscale.__version__}\n", "")


def test_user_error_shows_cause_value_and_remedy_without_a_traceback() -> None:
    app = build_app()

    @app.command()
    def explode() -> None:
        raise ConfigError("Unknown [key]", found="stpes", remedy="Did you mean steps?")

    status, out, err = run(app, "explode")
    assert (status, out) == (2, "")
    assert err.splitlines() == ["error: Unknown [key]", "  found:  stpes", "  remedy: Did you mean steps?"]


def test_other_errors_keep_their_traceback() -> None:
    app = build_app()

    @app.command()
    def explode() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(app, ["explode"]).exception, ZeroDivisionError)


@pytest.mark.parametrize("closed", [">&- 2>&-", "<&- >&-"])
def test_streams_that_are_closed_are_open_to_nowhere(closed: str) -> None:
    told = "import os, sys; from fmscale.cli.main import _open_streams; _open_streams(); "
    told += "assert None not in (sys.stdin, sys.stdout, sys.stderr); print('a', file=sys.stderr, flush=True); "
    told += "assert os.open('/dev/null', 0) > 2"
    subprocess.run(["bash", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, told], check=True)


def test_a_launch_goes_on_when_its_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("typer.echo", gone)
    launch._tell("SIGUSR1: the ranks save and end")


def _commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(group, "commands", {})
    return [path, *(below for name, child in children.items() for below in _commands(child, (*path, name)))]


@pytest.mark.parametrize("verb", sorted(_commands(get_command(build_app()))), ids=" ".join)
def test_help_has_an_example(verb: tuple[str, ...]) -> None:
    status, out, _ = run(build_app(), *verb, "--help")
    assert status == 0
    assert "Example:" in out
    assert f"fmscale {' '.join(verb)}".strip() in out.split("Example:")[1]


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from fmscale.cli.main import build_app; build_app();"
        "print([m for m in ('torch', 'pyarrow', 'obstore', 'tokenizers', 'deepspeed') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
