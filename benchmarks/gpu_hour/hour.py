"""The driver: runs steps in order within the time, whatever their outcome; it needs only Python."""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu_hour.install import missing, python_of
from benchmarks.gpu_hour.jobs import Job, Outcome, run_jobs
from benchmarks.gpu_hour.journal import FORMAT, FORMAT_VERSION, Journal
from benchmarks.gpu_hour.setting import Setting, Step
from benchmarks.gpu_hour.source import identity
from benchmarks.gpu_hour.steps import chosen, steps
from fmscale.runtime.provenance import this_machine

INSTALL_SECONDS = 120.0
CLOSING_SECONDS = 4.0
"""Time for the end: kill processes, remove the scratch folder."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Arguments of the command line."""

    mode: str
    """Mode: train or kernels."""
    seconds: float
    """Time for all steps."""
    dry: bool
    """True for tiny steps on a CPU."""
    only: str
    """Steps, or empty for all."""
    out: Path
    """Folder of the records."""
    scratch: Path | None
    """Parent of the scratch folder; None takes the system's."""


class Stopped(Exception):
    """A signal ended the hour."""


def run_hours(hours: Sequence[Asked]) -> int:
    """Run the steps of each hour; 0 if all succeeded, else 1. Raises ValueError for an unknown step."""
    scratch = Path(tempfile.mkdtemp(prefix="fmscale-gpu-", dir=hours[0].scratch))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    good = True
    try:
        for asked in hours:
            came_out, stopped = _steps(asked, scratch, time.monotonic() + asked.seconds - CLOSING_SECONDS)
            good &= came_out
            if stopped:
                break
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0 if good else 1


def _steps(asked: Asked, scratch: Path, deadline: float) -> tuple[bool, bool]:
    """True if all steps succeeded; True if a signal ended them."""
    planned = chosen(steps(asked.mode, Setting(python=sys.executable, scratch=scratch, dry=asked.dry)), asked.only)
    journal = Journal(asked.out)
    began = time.monotonic()
    journal.record(
        "begin", format=FORMAT, format_version=FORMAT_VERSION, mode=asked.mode, dry_run=asked.dry,
        seconds=asked.seconds, steps=[step.name for step in planned], machine=this_machine(), time=time.time(),
        **identity(),
    )  # fmt: skip
    good, reason = True, ""
    try:
        python = _environment(journal, scratch, deadline)
        setting = Setting(python=python or sys.executable, scratch=scratch, dry=asked.dry)
        for step in chosen(steps(asked.mode, setting), asked.only):
            good &= bool(python) and _step(journal, step, scratch, deadline)
            if not python:
                _ended(journal, step, [], "not begun: the environment could not be made")
    except Stopped as stop:
        good, reason = False, str(stop)
    journal.record("end", ok=good, reason=reason, seconds=round(time.monotonic() - began, 1))
    journal.close()
    print(f"{'all steps came out' if good else reason or 'not all steps came out'}; records are in {asked.out}")
    return good, bool(reason)


def _environment(journal: Journal, scratch: Path, deadline: float) -> str:
    """The jobs' interpreter; empty if its environment could not be made."""
    absent = missing(sys.executable)
    if not absent:
        return sys.executable
    folder = scratch / "venv"
    if Path(python_of(folder)).exists() and not missing(python_of(folder)):  # the hour before made it
        return python_of(folder)
    command = (sys.executable, "-m", "benchmarks.gpu_hour.install", str(folder))
    job = Job(name="install", command=command, seconds=INSTALL_SECONDS)
    step = Step(name="install", what=f"missing here: {', '.join(absent)}", least=0, most=INSTALL_SECONDS, jobs=(job,))
    return python_of(folder) if _step(journal, step, scratch, deadline) else ""


def allowance(step: Step, left: float, free_bytes: int) -> tuple[float, str]:
    """Seconds that a step gets of the remaining time; 0 and the reason if it is not started."""
    if left < step.least:
        return 0.0, f"not begun: {max(0.0, left):.0f} s were left of the {step.least:.0f} that it needs"
    if free_bytes < step.disk:
        return 0.0, (
            f"not begun: {free_bytes / 1e9:.0f} GB of disk were free of the {step.disk / 1e9:.0f} that it needs; "
            "name a larger folder with --scratch"
        )
    return min(left, step.most), ""


def _step(journal: Journal, step: Step, scratch: Path, deadline: float) -> bool:
    seconds, reason = allowance(step, deadline - time.monotonic(), shutil.disk_usage(scratch).free)
    if reason:
        return _ended(journal, step, [], reason)
    print(f"step {step.name}, at most {seconds:.0f} s: {step.what}", flush=True)

    def ended(outcome: Outcome) -> None:
        print(f"  {outcome.job}: {outcome.seconds:.0f} s {outcome.reason.partition(chr(10))[0]}", flush=True)
        journal.record("job", step=step.name, **vars(outcome))

    began = time.monotonic()
    outcomes = run_jobs(
        step.jobs,
        at_once=step.at_once,
        deadline=began + seconds,
        record=lambda job, values: journal.record("found", step=step.name, job=job, found=values),
        say=journal.say,
        ended=ended,
    )
    return _ended(journal, step, outcomes, "", time.monotonic() - began)


def _ended(journal: Journal, step: Step, outcomes: Sequence[Outcome], reason: str, seconds: float = 0.0) -> bool:
    bad = [one.job for one in outcomes if not one.ok]
    ok = bool(outcomes) and not bad
    reason = reason or ("" if ok else f"did not come out: {', '.join(bad)}")
    journal.record("step", step=step.name, ok=ok, seconds=round(seconds, 3), reason=reason)
    if reason:
        print(f"step {step.name} {reason}", flush=True)
    return ok


def _stop(number: int, frame: FrameType | None) -> Any:
    raise Stopped(f"stopped by {signal.Signals(number).name}")
