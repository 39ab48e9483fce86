"""Tuning problems without a GPU: some configurations are right, the others wrong, refused or crashing.

Imported by name in the tuner's worker process.
"""

import os
import threading

import torch
from fmscale.kernels.dispatch import Config, launch_config
from torch import Tensor

from benchmarks.kernels.contest import Contestant
from benchmarks.kernels.problems import Problem, Runs
from benchmarks.kernels.timing import DeviceBroken

RIGHT, WRONG, REFUSED, DEADLY, HANGING, BREAKING = range(6)
CHOICES: tuple[Config, ...] = (
    {"kind": WRONG}, {"kind": RIGHT, "slow": 1}, {"kind": BREAKING}, {"kind": REFUSED}, {"kind": DEADLY},
    {"kind": RIGHT},
)  # fmt: skip
LOST = False
"""Like a lost CUDA context: no later call works in this process."""


def _kernel(name: str, x: Tensor) -> Tensor:
    chosen = launch_config("twice", name, x.device, "tiny", ({"kind": WRONG},))
    kind = chosen["kind"]
    global LOST
    LOST = LOST or kind == BREAKING
    if LOST:
        raise DeviceBroken("an illegal memory access was encountered")
    if kind == WRONG:
        return x * 1.5
    if kind == REFUSED:
        raise RuntimeError("out of resource: shared memory")
    if kind == DEADLY:
        os._exit(17)
    if kind == HANGING:
        threading.Event().wait()
    for _ in range(300 * chosen.get("slow", 0)):
        x.sin()
    return x * 2


def _make(names: tuple[str, ...], also_deadly: bool) -> Runs:
    # Two threads with so little work wait for each other when another process has a core: 0.1 s became 8.
    torch.set_num_threads(1)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))

    def kernel() -> list[Tensor]:
        y = x
        for name in names:
            y = _kernel(name, y)
        return [y]

    def eager() -> list[Tensor]:
        for _ in range(1000):
            x.sin()
        return [x * 2 ** len(names)]

    def off() -> list[Tensor]:
        return [x * 3]

    def deadly() -> list[Tensor]:
        os._exit(18)

    backends = {"triton": kernel, "eager": eager, "sdpa": off}
    if also_deadly:
        backends["deadly"] = deadly
    return (
        {name: Contestant(run=f, numbers=f) for name, f in backends.items()},
        lambda: [x.double() * 2 ** len(names)],
    )


def problem(bucket: str, *, also_deadly: bool = False, **kernels: tuple[Config, ...]) -> Problem:
    """An op of these kernels, each of which doubles, perhaps with a backend that ends the process."""
    return Problem(op="twice", bucket=bucket, kernels=kernels, make=lambda _: _make(tuple(kernels), also_deadly))


def _too_large(_: torch.device) -> Runs:
    raise torch.OutOfMemoryError("too large")


def problems() -> list[Problem]:
    """One kernel with every kind of configuration; two with a wrong default; a kernel without a right configuration; no
    kernel.
    """
    right, wrong = {"kind": RIGHT}, {"kind": WRONG}
    return [
        problem("one", forward=CHOICES),
        problem("two", forward=({**right, "slow": 1}, right), backward=(wrong, right)),
        problem("none", forward=(wrong,), backward=(wrong,)),
        Problem(op="twice", bucket="too large", kernels={"forward": (right,)}, make=_too_large),
    ]


def quick() -> list[Problem]:
    """Three equal problems, each with one wrong and one right configuration."""
    return [problem(bucket, forward=({"kind": WRONG}, {"kind": RIGHT})) for bucket in "abc"]


def hanging() -> list[Problem]:
    """The only configuration never returns, and one of the other backends ends the process."""
    return [problem("hangs", also_deadly=True, forward=({"kind": HANGING},))]
