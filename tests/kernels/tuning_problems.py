"""Tuning problems without a GPU: one configuration is right, the others are wrong, refused or deadly.

Imported by name in the tuner's worker process.
"""

import os
import threading

import torch
from fmscale.kernels.bench.problems import Problem, Runs
from fmscale.kernels.dispatch import Config, config
from torch import Tensor

CHOICES: tuple[Config, ...] = ({"kind": 0}, {"kind": 1}, {"kind": 2}, {"kind": 3}, {"kind": 0, "slow": 1})


def _make(device: torch.device) -> Runs:
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))

    def kernel() -> list[Tensor]:
        chosen = config("twice", "forward", device, "tiny", {"kind": 1})
        if chosen["kind"] == 1:
            return [x * 2.001]
        if chosen["kind"] == 2:
            raise RuntimeError("out of resource: shared memory")
        if chosen["kind"] == 3:
            os._exit(17)
        if chosen["kind"] == 4:
            threading.Event().wait()
        for _ in range(50 * chosen.get("slow", 0)):
            x.sin()
        return [x * 2]

    def eager() -> list[Tensor]:
        for _ in range(100):
            x.sin()
        return [x + x]

    def wrong() -> list[Tensor]:
        return [x * 3]

    return {"triton": kernel, "eager": eager, "sdpa": wrong}, lambda: [x.double() * 2]


def problems() -> list[Problem]:
    """One op with five configurations."""
    return [Problem(op="twice", bucket="tiny", kernels={"forward": CHOICES}, make=_make)]
