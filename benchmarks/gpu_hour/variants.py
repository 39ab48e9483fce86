"""Choices between variants of a kernel, timed alternately; the first is the shipped one.

python -m benchmarks.gpu_hour.variants NAME [--dry]

`forward E=128`, `forward E=64` and `dkdv E=128` are launch configurations of attention at 8,192 tokens, causal. With
`num_stages=1` the loads of a tile are ordered before its products under Triton 3.6 too, where other configurations
lack a fence. `flush` is RMSNorm from a cold cache without and with written lines.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

import torch
from fmscale.kernels import flash_attention, rms_norm
from fmscale.kernels.attention.configs import configs
from fmscale.kernels.dispatch import Config, forced

from benchmarks.gpu_hour.emit import emit
from benchmarks.kernels.attention_rows import attention_problem
from benchmarks.kernels.contest import Contest, Contestant, ContestRow, Run, hold
from benchmarks.kernels.sizes import FULL, TINY, Sizes
from benchmarks.kernels.timing import Clock, CudaClock, WallClock, summarize

REPEATS = 10


def main() -> None:
    """Emit the run of the named choice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args()
    device = torch.device("cpu" if asked.dry else "cuda")
    sizes = TINY if asked.dry else replace(FULL, tokens=8192)
    repeats = 2 if asked.dry else REPEATS
    if asked.name == "flush":
        run = flush(sizes, device, repeats)
    else:
        clock: Clock = WallClock() if asked.dry else CudaClock(device)
        run = hold(row(asked.name, sizes), device, clock, repeats=repeats)
    emit(sys.stdout, about="variants", **asdict(run))


def variants(name: str) -> tuple[str, Mapping[str, Config]]:
    """Kernel and configurations of a choice. Raises KeyError for an unknown choice."""
    wide, narrow = (configs(torch.bfloat16, E, heavy=False) for E in (128, 64))
    return {
        "forward E=128": ("forward", _named(*wide["forward"], {**wide["forward"][0], "num_stages": 1})),
        "forward E=64": ("forward", _named(*narrow["forward"], {**narrow["forward"][0], "maxnreg": 128})),
        "dkdv E=128": ("dkdv", _named(*wide["dkdv"], {**wide["dkdv"][0], "num_stages": 1})),
    }[name]


def row(name: str, sizes: Sizes) -> ContestRow:
    """A row whose contestants are the configurations of one kernel."""
    kernel, choices = variants(name)
    E, T = int(name.partition("=")[2]), sizes.lengths[-1] if sizes.tokens < 8192 else sizes.tokens
    kind = "forward" if kernel == "forward" else "backward"
    flops = 2 * sizes.heads * T * T * E * (1.0 if kind == "forward" else 2.5)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flash_attention(q, k, v, backend="triton")

    def build(device: torch.device) -> Contest:
        contest = attention_problem(
            kind, sizes, T, sizes.heads, E, device, [(0, T)], lambda _: {name: lambda: attention for name in choices}
        )
        makers = {name: partial(_under, make, kernel, choices[name]) for name, make in contest.makers.items()}
        return replace(contest, makers=makers)

    return ContestRow(id=name, variant=f"T={T}", unit="TFLOP/s", flops=flops, bytes=1.0, build=build)


def _named(*choices: Config) -> dict[str, Config]:
    return {", ".join(f"{key} {value}" for key, value in one.items()): one for one in choices}


def _under(make: Callable[[], Contestant], kernel: str, config: Config) -> Contestant:
    """The contestant, launched with a configuration."""
    with forced("attention", kernel, config):
        made = make()

    def launched(call: Callable[[], object]) -> object:
        with forced("attention", kernel, config):
            return call()

    return Contestant(run=partial(launched, made.run), numbers=partial(launched, made.numbers))  # type: ignore[arg-type]


def flush(sizes: Sizes, device: torch.device, repeats: int) -> Run:
    """RMSNorm forward under both clocks in turn."""
    x = torch.randn(sizes.rows, sizes.hidden, device=device).to(sizes.dtype)
    weight = torch.ones(sizes.hidden, device=device, dtype=sizes.dtype)
    clean: Clock = CudaClock(device) if device.type == "cuda" else WallClock()
    dirty: Clock = CudaClock(device, dirty=True) if device.type == "cuda" else WallClock()
    clocks = {"clean": clean, "dirty": dirty}
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    rms_norm(x, weight, backend="triton")
    for turn in range(repeats):
        for name in list(clocks)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(clocks[name].seconds(lambda: rms_norm(x, weight, backend="triton")))
    moved = 2 * x.numel() * x.element_size()
    times = {name: summarize(each) for name, each in seconds.items()}
    return Run(
        id="flush", variant=f"{sizes.rows} x {sizes.hidden}", unit="TB/s", intensity=1.0, flops=float(moved),
        rates={name: moved / one.median / 1e12 for name, one in times.items()},
        times={name: asdict(one) for name, one in times.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
