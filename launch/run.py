"""Runs a launch: passes stop signals to the ranks, and returns the launcher's exit status."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
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
    """True if this process got a stop signal before."""


def run_launch(launch: Launch, program: str, folder: Path, tell: Tell, *, more: bool = False) -> RankEnd:
    """Start a launch and wait for its end.

    The ranks run `program`. The run's `folder` loses the error.json of an earlier attempt. The first
    SIGUSR1, SIGTERM, SIGINT or SIGHUP asks the ranks to save and end, the second tells the launcher to end them,
    and the third kills all processes of the launch on this host. If it was stopped, or no `more` launches follow, this
    process ignores these signals from the launcher's end on: it must not report an end by a signal while Python ends.
    Raises ConfigError if the launcher cannot be executed.
    """
    if not launch.detached:
        clear_failure(folder)
    # A signal that is ignored since the start of this process, as by nohup, stays ignored.
    ignored = {number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) is signal.SIG_IGN}
    awaited = {signal.SIGCHLD, *(STOPS - ignored)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    stops, asking = 0, None
    try:
        process = _start(launch, mask)
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
                asking = _ask(launch, process, program, asking)
        # A stop that came with the launcher's end stops the launches that would follow.
        stops += signal.sigtimedwait(awaited - {signal.SIGCHLD}, 0) is not None
    finally:
        if stops or not more:
            for number in STOPS:
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = process.returncode
    return RankEnd(status=status if status >= 0 else 128 - status, stopped=stops > 0)


def _heard_of_parent(number: int) -> None:
    """Count the parent's death once: the child of a killed process with several threads passes from thread to thread
    as they die, and each time gets the signal for a parent's death.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    signal.sigtimedwait({number}, 0)


def _ask(
    launch: Launch, process: subprocess.Popen[bytes], program: str, before: subprocess.Popen[bytes] | None
) -> subprocess.Popen[bytes] | None:
    """Ask the ranks to save and end; returns the process that asked. A launcher gets its signal once, and a command
    runs again until it has found ranks.
    """
    if launch.stop_by == "ranks":
        signal_ranks(process.pid, program)
    elif launch.stop_by == "launcher":
        process.send_signal(signal.SIGUSR1)
    elif launch.stop_by == "terminate":
        if before is None:
            process.terminate()
        return process
    elif before is None or before.poll():
        return _start(replace(launch, argv=launch.ask), mask=())
    return before


def _words(launch: Launch, name: str, stops: int) -> str:
    if stops > 1:
        return f"{name} again: " + ("the launcher ends the ranks" if stops == 2 else "all are killed")
    if launch.detached:
        return f"{name}: no longer waiting; the job stays in the queue"
    return f"{name}: the ranks save and end; once more ends them without"


def _start(launch: Launch, mask: Iterable[int]) -> subprocess.Popen[bytes]:
    library = ctypes.CDLL(None)
    # torchrun reads PET_* variables as options, and they could name another place to meet.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}

    def prepare() -> None:
        # Launcher and ranks inherit the ignored SIGUSR1; a ready rank replaces it by its handler.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # If this process is killed, the launcher ends its ranks in good order.
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    try:
        return subprocess.Popen(
            launch.argv,
            env={**inherited, "PATH": search_path(), **launch.environment},
            stdin=subprocess.DEVNULL,
            # Ctrl-C at the terminal reaches only this process, which first asks the ranks to stop.
            start_new_session=True,
            preexec_fn=prepare,
        )
    except OSError as error:
        cause = f"{launch.argv[0]} cannot be started"
        raise ConfigError(cause, found=error.strerror, remedy="Install it again.") from error
