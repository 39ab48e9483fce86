"""Benchmark rows without a GPU whose contestants misbehave; imported by name in the benchmark's worker."""

import os
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.contest import Contest, Contestant, ContestRow


def _row(variant: str, flops: float, **bodies: Callable[[], Tensor]) -> ContestRow:
    def build(_: torch.device) -> Contest:
        if not bodies:
            raise torch.OutOfMemoryError("too large")
        makers = {
            name: lambda body=body: Contestant(run=body, numbers=lambda: [body()]) for name, body in bodies.items()
        }
        return Contest(makers=makers, reference=lambda: [torch.ones(3)], absent={"flash": "not this one"})

    return ContestRow(id="RMSNorm fwd", variant=variant, unit="TB/s", flops=flops, bytes=1e12, build=build)


def right() -> Tensor:
    """The right numbers, with a line on stdout, as compilers print them."""
    print("autotuning ...")
    return torch.ones(3)


def off() -> Tensor:
    """Wrong numbers."""
    return torch.zeros(3)


def deadly() -> Tensor:
    """Kills the process."""
    os._exit(17)


def hanging() -> Tensor:
    """Never returns."""
    threading.Event().wait()
    return torch.ones(3)


def rows() -> list[ContestRow]:
    """Every kind of failure beside a right contestant."""
    return [
        _row("fails", 2.0, ours=right, wrong=off, deadly=deadly, eager=right),
        _row("cannot be built", 1.0),
        _row("fine", 1.0, ours=right),
    ]


def silent() -> list[ContestRow]:
    """One contestant hangs."""
    return [_row("hangs", 1.0, ours=right, hangs=hanging)]
