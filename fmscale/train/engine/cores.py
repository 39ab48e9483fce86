"""Cores of a rank beside its training thread: for updates in host memory, and for compilers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fmscale.runtime import variables


def cores_of(local_size: int) -> int:
    """Cores that one of a node's `local_size` ranks may use: those that its launcher bound it to, and of the cores that
    the launcher itself has no more than its part, as ranks may share a socket. At least 1.
    """
    own, launcher = (len(os.sched_getaffinity(process)) for process in (0, os.getppid()))
    return max(1, min(own, launcher // local_size))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let loops of torch and of DeepSpeed's CPU Adam take this number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bound_compilers(cores: int) -> None:
    """Bound torch.compile's worker processes, of which each rank would start up to 32, unless the user did."""
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        variables.lend(TORCHINDUCTOR_COMPILE_THREADS=str(cores))
