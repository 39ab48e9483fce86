"""The list of verbs, and the display of errors.

Each verb has a file with `app`: a command, or a named group of commands, with examples made by
`fmscale.cli.output.example`. The file imports slow packages (torch, obstore, pyarrow) inside the command,
so that `fmscale --help` answers at once.
"""

import importlib
import logging
import os
import sys
import threading
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fmscale.cli.output import example, print_error
from fmscale.errors import FmscaleError
from fmscale.text import clean, printable_lines, scrub

VERBS = (
    *("ingest", "plan", "train", "generate", "evaluate", "score", "compare", "report", "doctor", "bench", "quickstart"),
    *("launch", "import_model", "chat", "serve", "dataset", "config", "checkpoint", "run", "adapter", "top"),
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
        except Exception as error:
            if hasattr(error, "message"):  # click's, which may show an argument
                error.message = clean(str(error.message))
            raise


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
    sys.excepthook = _print_traceback
    threading.excepthook = lambda args: _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)
    if logging.lastResort:
        logging.lastResort.setFormatter(_PlainFormatter())
    build_app()()


class _PlainFormatter(logging.Formatter):
    """Messages on one line and without credentials, with the traceback below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return clean(record.getMessage())

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable_lines(scrub(super().formatException(ei)))


def _print_traceback(*error: Any) -> None:
    print(printable_lines(scrub("".join(traceback.format_exception(*error)))), end="", file=sys.stderr)


def _open_streams() -> None:
    """Open /dev/null as each standard stream that the parent process closed: Python has None there. Otherwise a file of
    the run would get the stream's number, to which libraries print. Characters that the console lacks become escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is `number`
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        elif number:
            getattr(sys, name).reconfigure(errors="backslashreplace")
