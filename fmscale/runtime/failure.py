"""The first rank that fails writes its cause into one file; ranks that fail later do not replace it (promise P9).

The launcher shows `error.json`: without it a user would search N tracebacks for the first failure.
"""

import json
import logging
import os
import re
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmscale.errors import ConfigError, FmscaleError, FormatError, RankError
from fmscale.runtime.waits import LONGEST_PAUSE, SHORTEST_PAUSE, HostWaits
from fmscale.runtime.world import World
from fmscale.text import scrub

logger = logging.getLogger(__name__)

FILE_NAME = "error.json"
FORMAT_VERSION = 1
ECHOES = ("RankError", "DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
"""Errors that a rank raises when it has lost another rank."""
GLOO = re.compile(r"gloo/|Connection (closed|reset) by peer")
"""Words of the bare RuntimeError that gloo raises then."""
TOLD_SECONDS = 1.0
"""Longest wait for the cause of such an error: a rank's end is noticed at once, and reported in milliseconds."""
SEEK_SECONDS = 12.0
"""Longest wait for a cause that no rank tells: rank 0's watchdog then looks for a rank that has fallen silent."""
START_SECONDS = 60.0
"""Longest time between the starts of two ranks of an attempt."""


@dataclass
class Whereabouts:
    """Current work of this process: written by the loop, reported by a failure."""

    phase: str = "start"
    """Name of the work, such as ingest, restore, train, evaluate, save."""
    step: int | None = None
    """The optimizer step, counted from 1 as in the metrics; None before the first step."""
    began: float = field(default_factory=time.time)
    """Time at which this process joined the run."""
    recorded: BaseException | None = None
    """The failure that has been recorded."""
    watch: Callable[[str], None] | None = None
    """Function that is called with each phase at its begin."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase that has ended."""
    moved: float = field(default_factory=time.monotonic)
    """Monotonic time at which this phase or step began."""
    lost: str = ""
    """End of another rank without a report, as the watchdog saw it."""
    seeks: bool = False
    """True while this process, which lost another rank, waits to be told why."""
    _since: float = field(default_factory=time.monotonic)

    def __setattr__(self, name: str, value: object) -> None:
        moves = name in ("phase", "step") and value != getattr(self, name)
        if moves and name == "phase" and "_since" in vars(self):
            now = time.monotonic()
            self.spent[self.phase] = self.spent.get(self.phase, 0.0) + now - self._since
            self._since = now
        super().__setattr__(name, value)
        if moves:
            super().__setattr__("moved", time.monotonic())
            if name == "phase" and self.watch:
                self.watch(self.phase)


def failure_report(error: BaseException, world: World, where: Whereabouts) -> dict[str, Any]:
    """Content of `error.json`: place, phase, step, traceback, and an FmscaleError's cause, found, remedy.

    Every text is free of credentials.
    """
    known = error if isinstance(error, FmscaleError) else None
    return {
        "format_version": FORMAT_VERSION,
        "time": time.time(),
        "began": where.began,
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
        "cause": scrub(known.cause if known else str(error)),
        "found": scrub(str(known.found)) if known and known.found is not None else None,
        "remedy": scrub(known.remedy) if known else "",
        "traceback": scrub("".join(traceback.format_exception(error))),
    }


def write_first(directory: Path, report: dict[str, Any]) -> bool:
    """Write the report to `directory`/error.json unless a report is there. True if this report is there now.

    The report of an earlier attempt is replaced. So is the report of a rank that only lost another rank, if this
    report has a cause; of several such replacements at once a single report stays.
    The file is written whole under another name, then linked, which fails if error.json exists. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=directory)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        try:
            os.link(name, directory / FILE_NAME)
        except FileExistsError:
            if not _gives_way(directory, report):
                return False
            os.replace(name, directory / FILE_NAME)
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _gives_way(directory: Path, report: dict[str, Any]) -> bool:
    """True if this report may replace the present report."""
    try:
        present = first_failure(directory)
    except FormatError:
        return True
    if present is None or present.get("attempt") != report["attempt"]:
        return True
    if present.get("time", 0.0) < report["began"] - START_SECONDS:
        return True
    return is_echo(present) and not is_echo(report)


def is_echo(report: Mapping[str, Any]) -> bool:
    """True for a report of a rank that only lost another rank."""
    kind, cause = report.get("type"), str(report.get("cause"))
    return kind in ECHOES or (kind == "RuntimeError" and GLOO.search(cause) is not None)


def first_failure(directory: Path) -> dict[str, Any] | None:
    """The report of the rank that failed first, or None. Raises FormatError for any other content."""
    path = directory / FILE_NAME
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        remedy = "Delete it; the ranks' own output has what happened."
        raise FormatError(f"{path} is not a failure report", found=str(error), remedy=remedy) from error
    version = report.get("format_version") if isinstance(report, dict) else None
    if version != FORMAT_VERSION:
        remedy = "Read it with the fmscale that wrote it, or as JSON."
        raise FormatError(f"{path} has an unknown format_version", found=version, remedy=remedy)
    return dict(report)


def clear_failure(directory: Path) -> None:
    """Delete the report of an earlier attempt. Safe only before the ranks of this attempt start, or after all have met
    and wait: none of them can have failed then. Raises ConfigError if the folder does not allow it.
    """
    try:
        (directory / FILE_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{FILE_NAME} of an earlier attempt cannot be deleted from the run's folder",
            found=f"{directory}: {error.strerror}",
            remedy="Change the rights to the folder, or take another train.folder.",
        ) from error


def describe_failure(report: dict[str, Any]) -> str:
    """The report for a terminal: rank, host, phase, cause and remedy, or the traceback of an error without a remedy."""
    step = "" if report["step"] is None else f" at step {report['step']}"
    failed = "lost another rank" if is_echo(report) else "failed first"
    lines = [
        f"rank {report['rank']} on {report['host']} {failed}, in {report['phase']}{step}:",
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
def recorded(directory: Path, world: World, where: Whereabouts, waits: HostWaits | None = None) -> Iterator[None]:
    """Record an exception that leaves the block, if it is the run's first failure, and raise it again.

    Ranks that wait over `waits` learn of the failure after that, so that the cause is recorded before they raise. A
    report that cannot be written is only logged. An error by which this rank lost another becomes a RankError with the
    cause, if the cause is known within SEEK_SECONDS: a reset connection says nothing of a rank that was killed.
    """
    try:
        yield
    except Exception as raised:
        error = raised
        if where.recorded is not error:
            if (
                waits is not None
                and world.world_size > 1
                and (cause := _cause(failure_report(error, world, where), where, waits))
            ):
                error = RankError(
                    f"rank {world.rank} lost another rank: {cause}",
                    remedy="That rank's error.json and log, or the lines of its launcher, say more.",
                )
            where.recorded = error
            try:
                write_first(directory, failure_report(error, world, where))
            except OSError as trouble:
                logger.warning("%s is not written: %s", directory / FILE_NAME, trouble)
        if waits is not None:
            waits.fail(error, where.phase)
        if error is raised:
            raise
        raise error from raised


def _cause(report: Mapping[str, Any], where: Whereabouts, waits: HostWaits) -> str:
    """The cause of a report that is an echo; empty if the report has it, or if no rank tells it."""
    from torch.distributed import DistNetworkError

    begin = time.monotonic()
    cause = ""
    while is_echo(report) and not cause and (waited := time.monotonic() - begin) < SEEK_SECONDS:
        where.seeks = waited >= TOLD_SECONDS
        with suppress(DistNetworkError):
            cause = where.lost or waits.failure()
        time.sleep(LONGEST_PAUSE if where.seeks else SHORTEST_PAUSE)
    where.seeks = False
    return "" if cause in report["cause"] else cause
