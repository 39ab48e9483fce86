"""The first rank to fail says why, in one file; the ranks that fall over after it do not overwrite it (P9).

The launcher shows `error.json` first: without it a user finds N tracebacks about broken connections, and
the one that caused them somewhere in the middle.
"""

import json
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmscale.errors import FmscaleError, FormatError
from fmscale.runtime.scrub import scrub
from fmscale.runtime.world import World

FILE_NAME = "error.json"
FORMAT_VERSION = 1


@dataclass
class Whereabouts:
    """What this process is doing; the loop writes it, a failure reports it."""

    phase: str = "start"
    """Such as ingest, restore, train, evaluate, save."""
    step: int | None = None
    """The optimizer step, once there is one."""


def failure_report(error: BaseException, world: World, where: Whereabouts) -> dict[str, Any]:
    """What `error.json` holds: place, phase, step, traceback, and an FmscaleError's cause, found, remedy.

    Every text is free of credentials.
    """
    known = isinstance(error, FmscaleError)
    return {
        "format_version": FORMAT_VERSION,
        "time": time.time(),
        "rank": world.rank,
        "world_size": world.world_size,
        "local_rank": world.local_rank,
        "node": world.node,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "attempt": world.attempt,
        "phase": where.phase,
        "step": where.step,
        "type": type(error).__name__,
        "cause": scrub(error.cause if isinstance(error, FmscaleError) else str(error)),
        "found": scrub(str(error.found)) if known and error.found is not None else None,  # type: ignore[attr-defined]
        "remedy": scrub(error.remedy) if isinstance(error, FmscaleError) else "",
        "traceback": scrub("".join(traceback.format_exception(error))),
    }


def write_first(directory: Path, report: dict[str, Any]) -> bool:
    """Put the report at `directory`/error.json unless one is there. True if this one is now it.

    Whole or not at all: it is written beside, then linked, which fails where the name is taken.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=directory)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.link(name, directory / FILE_NAME)
    except FileExistsError:
        return False
    finally:
        os.unlink(name)
    return True


def first_failure(directory: Path) -> dict[str, Any] | None:
    """The report of the rank that failed first, or None. Raises FormatError for what is no such report."""
    path = directory / FILE_NAME
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FormatError(
            f"{path} is not a failure report",
            found=str(error),
            remedy="Delete it; the ranks' own output has what happened.",
        ) from error
    version = report.get("format_version") if isinstance(report, dict) else None
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path} has an unknown format_version",
            found=version,
            remedy="Read it with the fmscale that wrote it, or as JSON.",
        )
    return dict(report)


def clear_failure(directory: Path) -> None:
    """Forget an earlier attempt's failure; called by rank 0 before the ranks start."""
    (directory / FILE_NAME).unlink(missing_ok=True)


def describe_failure(report: dict[str, Any]) -> str:
    """The report for a terminal: who, where, why, what to do; the traceback only of unforeseen errors."""
    step = "" if report["step"] is None else f" at step {report['step']}"
    lines = [
        f"rank {report['rank']} on {report['host']} failed first, in {report['phase']}{step}:",
        f"{report['type']}: {report['cause']}",
    ]
    if report["found"] is not None:
        lines.append(f"  found:  {report['found']}")
    if report["remedy"]:
        lines.append(f"  remedy: {report['remedy']}")
    else:
        lines.append(report["traceback"].rstrip())
    return "\n".join(lines)


@contextmanager
def recorded(directory: Path, world: World, where: Whereabouts) -> Iterator[None]:
    """Record an exception that leaves the block, if it is the run's first, and let it go on."""
    try:
        yield
    except Exception as error:
        write_first(directory, failure_report(error, world, where))
        raise
