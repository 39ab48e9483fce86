"""SIGUSR1 asks ranks to save and end. Until a rank has its handler it would die of it, and launchers always do."""

import os
import signal
from collections.abc import Iterator

import psutil

DEAF_UNTIL_READY = ("sh", "-c", 'trap "" USR1; exec "$@"', "sh")
"""In front of a rank's command: it begins with SIGUSR1 ignored, which lasts until it handles it. Needed where the
rank is no child of ours: Slurm and MPI start programs with default signals."""


def signal_ranks(launcher: int, program: str) -> int:
    """Send SIGUSR1 to the ranks below the process `launcher`: those that run `program`. How many there were.

    Their own children are left alone: a rank decides when its helpers end.
    """
    try:
        ranks = list(_running(psutil.Process(launcher), program))
    except psutil.NoSuchProcess:
        return 0
    for rank in ranks:
        try:
            os.kill(rank.pid, signal.SIGUSR1)
        except ProcessLookupError:
            continue
    return len(ranks)


def kill_tree(launcher: int) -> None:
    """SIGKILL to the process `launcher` and all below it."""
    try:
        top = psutil.Process(launcher)
        for process in (top, *top.children(recursive=True)):
            process.kill()
    except psutil.NoSuchProcess:
        return


def _running(process: psutil.Process, program: str) -> Iterator[psutil.Process]:
    for child in process.children():
        try:
            # a script is the second word, after the interpreter of its first line
            runs_it = program in child.cmdline()[:2]
        except psutil.Error:
            continue
        if runs_it:
            yield child
        else:
            yield from _running(child, program)
