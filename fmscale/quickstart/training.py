"""The training acts: two jobs through `fmscale launch`, the first stopped by a signal half-way, and an unbroken run.

Only the store records how far the run is, so that a killed quickstart goes on at any point.
"""

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.errors import ConfigError, FmscaleError
from fmscale.quickstart.settings import Half, QuickstartSettings
from fmscale.runtime.failure import clear_failure, describe_failure, first_failure
from fmscale.runtime.sinks.jsonl import read_last
from fmscale.store.open import open_store

LOOK_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
STOP_SECONDS = 120.0
"""Longest wait for ranks that were asked to save and end."""
LAST_LINES = 15

Watch = Callable[[dict[str, Any]], None]
"""Gets the newest record of a step."""


class TrainingFailed(FmscaleError):
    """A job of the quickstart ended too early."""


def saved_step(settings: QuickstartSettings) -> int:
    """Step of the newest checkpoint in the store; 0 without a checkpoint."""
    entries = list_checkpoints(open_store(settings.store, read_only=True), settings.run)
    return max((entry.step for entry in entries), default=0)


def train_run(settings: QuickstartSettings, steps: int, watch: Watch, tell: Callable[[str], None]) -> None:
    """Train to the end, with the change of ranks and stage half-way. Does nothing for a complete run.

    Raises TrainingFailed with the report of the first rank that failed.
    """
    middle = steps // 2
    first, second = settings.halves
    if saved_step(settings) < middle:
        tell(f"training with {_ranks(first)}, ZeRO stage {first.stage}")
        _run_job(settings, first, watch, stop_at=middle)
        tell(f"SIGUSR1 at step {middle}: saved step {saved_step(settings)} and ended")
    if (step := saved_step(settings)) < steps:
        tell(f"going on from step {step} with {_ranks(second)}, ZeRO stage {second.stage}, in new processes")
        _run_job(settings, second, watch)
    if (step := saved_step(settings)) < steps:
        raise TrainingFailed(
            "the training was stopped before its end",
            found=f"step {step} of {steps}",
            remedy="Run the same command again: it goes on from there.",
        )


def train_unbroken(settings: QuickstartSettings, steps: int, watch: Watch) -> Path:
    """Train the first `steps` steps again on the first half's ranks, without a stop; return the folder of that run.
    Does nothing if such a run is complete. A resumed run would not be unbroken, so an incomplete run starts again.

    Raises TrainingFailed with the report of the first rank that failed.
    """
    tries = sorted(settings.folder.glob(f"{settings.run}-unbroken-*"), key=lambda path: path.stat().st_ctime)
    newest = _newest(tries[-1] / "metrics.jsonl") if tries else None
    if newest and newest["step"] >= steps:
        return tries[-1]
    folder = settings.folder / f"{settings.run}-unbroken-{len(tries) + 1}"
    _run_job(settings, settings.halves[0], watch, stop_at=steps, unbroken=folder)
    return folder


def _run_job(
    settings: QuickstartSettings, half: Half, watch: Watch, *, stop_at: int | None = None, unbroken: Path | None = None
) -> None:
    """Run one job to its end, or stop it at step `stop_at`. Raises TrainingFailed if the job fails."""
    folder = unbroken or settings.folder
    clear_failure(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = _command(settings.overrides(half, unbroken=unbroken), settings.config, half)
    with settings.log.open("ab") as log, _job(command, log.fileno()) as process:
        asked = False
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            record = _newest(folder / "metrics.jsonl")
            if record:
                watch(record)
            if stop_at is not None and record and record["step"] >= stop_at and not asked:
                process.send_signal(signal.SIGUSR1)
                asked = True
    if process.returncode:
        report = first_failure(folder)
        lines = settings.log.read_text(errors="replace").splitlines()
        raise TrainingFailed(
            "training ended with an error",
            found=describe_failure(report) if report else "\n".join(lines[-LAST_LINES:]),
            remedy=f"All that was printed is in {settings.log}. Run the same command again to go on.",
        )


def program() -> str:
    """The command fmscale. Raises ConfigError if it is not installed."""
    beside = Path(sys.executable).with_name("fmscale")
    found = str(beside) if beside.is_file() else shutil.which("fmscale")
    if found is None:
        raise ConfigError(
            "the command fmscale is neither beside this Python nor on the PATH",
            remedy="Install fmscale into the environment that starts it: pip install fmscale.",
        )
    return found


def _command(overrides: list[str], config: str, half: Half) -> list[str]:
    """`fmscale launch`, as a user would type it."""
    words = [program(), "launch", config, *overrides]
    return [*words, "--with", "local", "--nodes", "1", "--procs-per-node", str(half.world)]


@contextmanager
def _job(command: list[str], log: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A running job. If it still runs at the end of the block (Ctrl-C), it is asked to save and end."""
    library = ctypes.CDLL(None)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # If this process is killed, the ranks are asked to save and end.
        preexec_fn=lambda: library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGUSR1)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _newest(path: Path) -> dict[str, Any] | None:
    """The newest record of a step, or None."""
    steps = [record for record in read_last(path) if "event" not in record]
    return steps[-1] if steps else None


def _ranks(half: Half) -> str:
    return f"{half.world} rank{'s' * (half.world > 1)}"
