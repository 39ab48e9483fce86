"""SIGUSR1 asks ranks to save and end. A launcher dies of it, and so does a rank without its handler."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import psutil

DEAF_UNTIL_READY = ("sh", "-c", 'trap "" USR1; exec "$@"', "sh")
"""Words in front of a rank's command: the rank ignores SIGUSR1 until it has a handler. Slurm and MPI need these words,
as they start programs with default signals."""


def signal_ranks(launcher: int, program: str) -> None:
    """Send SIGUSR1 to the ranks: the processes below `launcher` that run `program`.

    Children of ranks get no signal: a rank decides when its helpers end.
    """
    with suppress(psutil.NoSuchProcess):
        for rank in list(_running(psutil.Process(launcher), program)):
            with suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGUSR1)


def kill_tree(launcher: int) -> None:
    """Send SIGKILL to the process `launcher` and all processes below it."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(launcher)
        for process in (top, *top.children(recursive=True)):
            process.kill()


def _running(process: psutil.Process, program: str) -> Iterator[psutil.Process]:
    for child in process.children():
        try:
            # The command of a script has its interpreter in front.
            runs_it = program in child.cmdline()[:2]
        except psutil.Error:
            continue
        if runs_it:
            yield child
        else:
            yield from _running(child, program)
