"""The list of verbs, and the display of errors.

Each verb has a file with `app`: a command, or a named group of commands, with examples made by
`fmscale.cli.output.example`. The file imports slow packages (torch, obstore, pyarrow) inside the command,
so that `fmscale --help` answers at once.
"""

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fmscale.cli.output import example, print_error
from fmscale.errors import FmscaleError

VERBS = (
    *("ingest", "plan", "train", "generate", "evaluate", "compare", "doctor", "bench", "quickstart", "launch"),
    *("dataset", "config", "checkpoint"),
)


class Verbs(TyperGroup):
    """The top group: shows an FmscaleError as cause, value and remedy instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; exit with status 2 on an FmscaleError."""
        try:
            return super().invoke(ctx)
        except FmscaleError as error:
            print_error(error)
            raise typer.Exit(2) from error  # click's status for a wrong option


def _print_version(flag: bool) -> None:
    if flag:
        from fmscale import __version__

        typer.echo(f"fmscale {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train foundation models on many GPUs, fed by a parallel store."""


def build_app() -> typer.Typer:
    """The application with every verb registered."""
    app = typer.Typer(
        name="fmscale",
        cls=Verbs,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=example("fmscale ingest docs/ --store runs/store --dataset docs"))(_top)
    for verb in VERBS:
        app.add_typer(importlib.import_module(f"fmscale.cli.{verb}").app)
    return app


def main() -> None:
    _open_streams()
    build_app()()


def _open_streams() -> None:
    """Open /dev/null as each standard stream that the parent process closed: Python has None there. Otherwise a file of
    the run would get the stream's number, to which libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is `number`
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
