"""The outcome of some random acts, and the row of a campaign, which is a process of its own."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

FAULTS = ("lost", "mixed", "silent", "hung", "crashed")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of some acts."""

    count: int = 1
    """Kills, corruptions or acts."""
    fault: str = ""
    """A name of FAULTS, or "" if all is well."""
    reason: str = ""
    """The fault in words, and the seed or the act that showed it."""


Acts = Callable[[Path, int, int], Iterator[Outcome]]
"""Takes an empty folder, the least number of acts and a seed."""


@dataclass(kw_only=True)
class Row:
    """A line of the table."""

    campaign: str
    target: int
    """Least number of acts."""
    count: int = 0
    lost: int = 0
    """Entries, documents, samples or steps that are missing, or there twice."""
    mixed: int = 0
    """States or bytes that belong to another step, run or version."""
    silent: int = 0
    """Damages that neither a read nor a check found."""
    hung: int = 0
    """Acts without an end, or with a longer wait than promised."""
    crashed: int = 0
    """Ends by anything but a FmscaleError."""
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True without a fault in enough acts."""
        return self.count >= self.target and not any(getattr(self, name) for name in FAULTS)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.count += outcome.count
        if outcome.fault:
            setattr(self, outcome.fault, getattr(self, outcome.fault) + 1)
            self.reasons.append(f"{outcome.fault}: {outcome.reason}")


def tried(acts: Callable[[], None], count: int, fault: str, name: str) -> Outcome:
    """The outcome of acts that raise AssertionError for a fault."""
    try:
        acts()
    except AssertionError as error:
        return Outcome(count=count, fault=fault, reason=f"{name}: {error}")
    return Outcome(count=count)


def perform(pipe: Connection, acts: Acts, folder: Path, target: int, seed: int) -> None:
    """Send the outcomes, then None."""
    try:
        for outcome in acts(folder, target, seed):
            pipe.send(outcome)
    except Exception as error:
        pipe.send(Outcome(count=0, fault="crashed", reason=f"{type(error).__name__}: {error}"))
        raise
    pipe.send(None)


def campaign(name: str, acts: Acts, folder: Path, *, target: int, seed: int, patience: float) -> Row:
    """Run a campaign in a process; it counts as hung if no outcome arrives for `patience` seconds."""
    row = Row(campaign=name, target=target)
    began = time.monotonic()
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=perform, args=(theirs, acts, folder, target, seed))
    process.start()
    theirs.close()
    outcome: Outcome | None = None
    try:
        while pipe.poll(patience):
            if (outcome := pipe.recv()) is None:
                break
            row.add(outcome)
        else:
            row.add(Outcome(count=0, fault="hung", reason=f"no outcome for {patience:.0f} s"))
    except EOFError:
        if not row.crashed:
            row.add(Outcome(count=0, fault="crashed", reason="the campaign's process died"))
    finally:
        end_tree(process.pid)
        process.join()
    row.seconds = round(time.monotonic() - began, 1)
    return row


def end_tree(pid: int | None) -> None:
    """Kill a process and all processes below it."""
    with suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def told(row: Row) -> str:
    """A row for people; reasons follow on lines of their own."""
    faults = "  ".join(f"{name} {getattr(row, name)}" for name in FAULTS)
    line = f"{'ok' if row.ok else 'FAILED':6}  {row.campaign:12} {row.count:4} of {row.target}  {faults}"
    return "\n        ".join([f"{line}  {row.seconds:.0f} s", *(json.dumps(reason[:600]) for reason in row.reasons)])
