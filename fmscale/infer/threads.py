"""CPU threads of a forward, by its work: with more threads than its matrices keep busy, each waits for the others.

The memory of a forward stays with the process for the next one.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

WORK = 8e6
"""FLOPs of a matrix for each thread, about a millisecond. Below it a machine that other programs use too gives two
threads a twentieth of the speed of one: they wait for each other's turn at every matrix."""
RELEASED = 2**25 - 2**16
"""Bytes of the largest block, with its header, from which glibc learns: 32 MiB."""


def threads_for(model: nn.Module, tokens: int) -> int:
    """Threads that a forward of `tokens` tokens keeps busy, at most the cores of this process."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim == 2]
    work = 2.0 * tokens * sum(sizes) / max(1, len(sizes))
    return max(1, min(len(os.sched_getaffinity(0)), int(work / WORK)))


@contextmanager
def cpu_threads(model: nn.Module, tokens: int, threads: int | None) -> Iterator[None]:
    """Compute forwards of `tokens` tokens with `threads` threads, or with `threads_for`; a GPU does not use them."""
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_for(model, tokens))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _keep_freed_memory() -> None:
    """Let the allocator keep up to 64 MiB that is free.

    glibc gives freed memory back to the kernel beyond twice the largest block that was ever freed. A layer has several
    tensors of that size: their page faults took 0.1 to 0.3 of the CPU seconds of forwards over 1,536 tokens.
    """
    torch.empty(RELEASED, dtype=torch.uint8)
