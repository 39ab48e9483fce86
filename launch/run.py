"""Running a launch: a wish to stop reaches the ranks, and the exit status is the launcher's."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fmscale.launch.environment import search_path
from fmscale.launch.launch import Launch
from fmscale.launch.signals import kill_tree, signal_ranks

from fmscale.errors import ConfigError
from fmscale.runtime.failure import clear_failure

STOPS = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
AGAIN_SECONDS = 2.0
"""Pause before ranks are asked to stop again: a rank that is still starting does not hear the signal."""
LOOK_SECONDS = 60.0
PR_SET_PDEATHSIG = 1

Tell = Callable[[str], None]


class RankEnd(NamedTuple):
    """End of a launcher."""

    status: int
    """Exit status, or 128 + N if signal N ended it."""
    stopped: bool
    """True if this process was told to stop before."""


def run_launch(launch: Launch, program: str, folder: Path, tell: Tell) -> RankEnd:
    """Start a launch and wait for its end.

    The ranks run `program`. `folder` is the run's: an error.json of an earlier attempt there is deleted. The first
    SIGUSR1, SIGTERM, SIGINT or SIGHUP asks the ranks to save and end, the second tells the launcher to end them,
    and the third kills all processes of the launch on this host.
    Raises ConfigError if the launcher cannot be executed.
    """
    if not launch.detached:
        clear_failure(folder)
    # What is ignored since the start of this process, as by nohup, stays ignored.
    deaf = {number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) is signal.SIG_IGN}
    awaited = {signal.SIGCHLD, *(STOPS - deaf)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        process = _start(launch, mask)
        stops = 0
        while process.poll() is None:
            received = signal.sigtimedwait(awaited, AGAIN_SECONDS if stops == 1 else LOOK_SECONDS)
            if received is not None and received.si_signo != signal.SIGCHLD:
                stops += 1
                if stops == 1:
                    _heard_of_parent(received.si_signo)
                tell(_words(launch, signal.Signals(received.si_signo).name, stops))
                if stops == 2:
                    process.terminate()
                elif stops > 2:
                    kill_tree(process.pid)
            if stops == 1 and process.poll() is None:
                _ask(launch, process, program, first=received is not None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = process.returncode
    return RankEnd(status=status if status >= 0 else 128 - status, stopped=stops > 0)


def _heard_of_parent(number: int) -> None:
    """Count the death of the parent once: a killed process with several threads hands its child from one dying
    thread to the next, and the child gets its signal of a parent's death each time.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    signal.sigtimedwait({number}, 0)


def _ask(launch: Launch, process: subprocess.Popen[bytes], program: str, first: bool) -> None:
    """Ask the ranks to save and end; a launcher is told to end only the first time."""
    if launch.stop_by == "ranks":
        signal_ranks(process.pid, program)
    elif launch.stop_by == "launcher":
        process.send_signal(signal.SIGUSR1)
    elif first:
        process.terminate()


def _words(launch: Launch, name: str, stops: int) -> str:
    if stops > 1:
        return f"{name} again: " + ("the launcher ends the ranks" if stops == 2 else "all are killed")
    if launch.detached:
        return f"{name}: no longer waiting; the job stays in the queue"
    return f"{name}: the ranks save and end; once more ends them without"


def _start(launch: Launch, mask: Iterable[int]) -> subprocess.Popen[bytes]:
    library = ctypes.CDLL(None)
    # torchrun takes variables PET_* for options, and could meet elsewhere by them.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}

    def prepare() -> None:
        # Ranks begin with SIGUSR1 ignored, as launchers inherit it; a ready rank has its handler.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # If this process is killed, the launcher ends its ranks in good order.
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    try:
        return subprocess.Popen(
            launch.argv,
            env={**inherited, "PATH": search_path(), **launch.environment},
            stdin=subprocess.DEVNULL,
            # Ctrl-C at the terminal reaches this process alone, which asks for a stop first.
            start_new_session=True,
            preexec_fn=prepare,
        )
    except OSError as error:
        cause = f"{launch.argv[0]} cannot be started"
        raise ConfigError(cause, found=error.strerror, remedy="Install it again.") from error
