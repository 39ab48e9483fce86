"""The problems that `--tune` measures: per op and bucket, every configuration and every backend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fmscale.kernels import (
    adamw_step,
    attention_decode,
    flash_attention,
    linear_cross_entropy,
    rms_norm,
    rope,
    split_byte_planes,
    swiglu,
)
from fmscale.kernels.adamw import adamw_step_eager
from fmscale.kernels.adamw import configs as adamw_configs
from fmscale.kernels.attention.configs import case as attention_case
from fmscale.kernels.attention.configs import configs as attention_configs
from fmscale.kernels.attention.decode import configs as decode_configs
from fmscale.kernels.byte_planes import configs as plane_configs
from fmscale.kernels.dispatch import Config, bucket
from fmscale.kernels.linear_cross_entropy import configs as loss_configs
from fmscale.kernels.rms_norm import configs as norm_configs
from fmscale.kernels.rope import configs as rope_configs
from fmscale.kernels.rope_eager import rope_eager, rope_turns
from fmscale.kernels.swiglu import configs as swiglu_configs
from torch import Tensor

from benchmarks.kernels.contest import Contestant, both_of, forward_of, listed
from benchmarks.kernels.eager_loss import linear_cross_entropy_eager

BF16 = torch.bfloat16

Runs = tuple[Mapping[str, Contestant], Callable[[], list[Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One op in one bucket."""

    op: str
    """The op's name in the dispatch table."""
    bucket: str
    """The bucket's name."""
    kernels: Mapping[str, tuple[Config, ...]]
    """Configurations to try per kernel; the first is the default."""
    make: Callable[[torch.device], Runs]
    """Makes, on a device, the op per backend ("eager" included) and the function for the fp64 golden result."""


def _differentiated(
    shapes: list[tuple[int, ...]], ours: Callable[..., Any], eager: Callable[..., Any],
    others: Mapping[str, Callable[..., Any]] | None = None, dtype: torch.dtype = BF16,
) -> Callable[[torch.device], Runs]:  # fmt: skip
    """Outputs and gradients for random inputs of `shapes`."""

    def make(device: torch.device) -> Runs:
        generator = torch.Generator(device).manual_seed(0)
        inputs = [torch.randn(s, device=device, generator=generator).to(dtype) for s in shapes]
        with torch.no_grad():
            upstream = [
                torch.randn(o.shape, device=device, generator=generator).to(dtype).to(o.dtype)
                for o in listed(eager(*inputs))
            ]
        # the same numbers for every backend and dtype: each number was rounded once, to `dtype`
        wide = ([t.double() for t in inputs], [t.double() for t in upstream])
        backends = {"triton": ours, "eager": eager, **(others or {})}
        return (
            {name: both_of(f, inputs, upstream) for name, f in backends.items()},
            lambda: both_of(eager, *wide).numbers(),
        )

    return make


def _norm(D: int) -> Problem:
    return Problem(
        op="rms_norm", bucket=bucket(BF16, D=D), kernels=norm_configs(D),
        make=_differentiated(
            [(2**25 // D, D), (D,)], lambda x, w: rms_norm(x, w, backend="triton"),
            lambda x, w: rms_norm(x, w, backend="eager"),
        ),
    )  # fmt: skip


def _swiglu(F: int) -> Problem:
    return Problem(
        op="swiglu", bucket=bucket(BF16, F=F), kernels=swiglu_configs(),
        make=_differentiated(
            [(2**25 // F, F)] * 2, lambda g, u: swiglu(g, u, backend="triton"),
            lambda g, u: swiglu(g, u, backend="eager"),
        ),
    )  # fmt: skip


def _rope(E: int) -> Problem:
    def positions(t: Tensor) -> Tensor:
        return torch.arange(t.shape[0], device=t.device) % 2048

    return Problem(
        op="rope", bucket=bucket(BF16, E=E), kernels=rope_configs(),
        make=_differentiated(
            [(8192, 32, E), (8192, 8, E), (E,), (E,)],
            lambda q, k, a, b: rope(q, k, positions(q), q_weight=a, k_weight=b, backend="triton"),
            lambda q, k, a, b: rope_eager(
                q, k, positions(q), turns=rope_turns(E, 10000.0, q.device), q_weight=a, k_weight=b
            ),
        ),
    )  # fmt: skip


def _loss(V: int) -> Problem:
    def labels(h: Tensor) -> Tensor:
        return torch.arange(h.shape[0], device=h.device) * 31 % V

    return Problem(
        op="linear_cross_entropy", bucket=bucket(BF16, V=V), kernels=loss_configs(),
        make=_differentiated(
            [(2048, 512), (V, 512)],
            lambda h, w: linear_cross_entropy(h, w, labels(h), backend="triton")[0],
            lambda h, w: linear_cross_entropy_eager(h, w, labels(h))[0],
        ),
    )  # fmt: skip


def _attention(E: int, *, documents: bool = False, window: int | None = None, sinks: bool = False) -> Problem:
    T, H, K = 4096, 16, 4
    shapes = [(T, H, E), (T, K, E), (T, K, E), *([(H,)] if sinks else [])]

    def with_backend(backend: str) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor, *sink: Tensor) -> Tensor:
            cu = torch.tensor([0, 700, 701, 1725, 3000, T], dtype=torch.int32, device=q.device)
            return flash_attention(
                q, k, v, cu_seqlens=cu if documents else None, window=window,
                sinks=sink[0] if sink else None, backend=backend,
            )  # fmt: skip

        return run

    simple = not documents and window is None and not sinks
    return Problem(
        op="attention",
        bucket=attention_case(
            BF16, E, documents=documents, causal=True, window=window is not None, softcap=False, sinks=sinks
        ),
        kernels=attention_configs(BF16, E, heavy=window is not None),
        make=_differentiated(
            shapes, with_backend("triton"), with_backend("eager"),
            {name: with_backend(name) for name, able in (("sdpa", simple), ("varlen", not sinks)) if able},
        ),
    )  # fmt: skip


def _decode(E: int) -> Problem:
    B, S, H, K = 8, 16384, 32, 8

    def make(device: torch.device) -> Runs:
        generator = torch.Generator(device).manual_seed(0)
        shapes = [(B, 1, H, E), (B, S, K, E), (B, S, K, E)]
        inputs = [torch.randn(s, device=device, generator=generator).to(BF16) for s in shapes]
        lengths = torch.arange(1, B + 1, dtype=torch.int32, device=device) * (S // B)

        def contestant(backend: str, of: list[Tensor]) -> Contestant:
            return forward_of(lambda q, k, v: attention_decode(q, k, v, lengths, backend=backend), of)

        return (
            {backend: contestant(backend, inputs) for backend in ("triton", "eager")},
            lambda: contestant("eager", [t.double() for t in inputs]).numbers(),
        )

    return Problem(op="attention_decode", bucket=bucket(BF16, E=E), kernels=decode_configs(BF16, E), make=make)


def _adamw(dtype: torch.dtype) -> Problem:
    def make(device: torch.device) -> Runs:
        generator = torch.Generator(device).manual_seed(0)
        master, first = (torch.randn(2**26, device=device, generator=generator) for _ in range(2))
        fixed = [master, first.to(dtype), first, master.square()]

        def contestant(step: Callable[..., None], of: list[Tensor]) -> Contestant:
            timed = [t.clone() for t in of]

            def numbers() -> list[Tensor]:
                state = [t.clone() for t in of]
                step(*state, lr=1e-3, step=10)
                return [state[0], state[2], state[3]]

            return Contestant(run=lambda: step(*timed, lr=1e-3, step=10), numbers=numbers)

        return (
            {b: contestant(partial(adamw_step, backend=b), fixed) for b in ("triton", "eager")},
            lambda: contestant(adamw_step_eager, [t.double() for t in fixed]).numbers(),
        )

    return Problem(op="adamw_step", bucket=str(dtype), kernels=adamw_configs(), make=make)


def _planes() -> Problem:
    def make(device: torch.device) -> Runs:
        x = torch.randn(2**26, device=device)

        def contestant(backend: str) -> Contestant:
            return Contestant(
                run=lambda: split_byte_planes(x, backend=backend),
                numbers=lambda: [split_byte_planes(x, backend=backend).float()],
            )

        return (
            {backend: contestant(backend) for backend in ("triton", "eager")},
            lambda: [split_byte_planes(x, backend="eager").double()],
        )

    split = {"split": plane_configs()["split"]}
    return Problem(op="split_byte_planes", bucket=str(torch.int32), kernels=split, make=make)


def problems() -> list[Problem]:
    """Every op at the model sizes that runs use."""
    return [
        *(_attention(E, documents=documents) for E in (64, 128) for documents in (False, True)),
        *(_attention(64, window=window, sinks=True) for window in (None, 1024)),
        _attention(128, window=1024),
        *(_decode(E) for E in (64, 128)),
        *(_norm(D) for D in (128, 1024, 2048, 4096, 8192)),
        *(_swiglu(F) for F in (4096, 8192, 16384)),
        *(_rope(E) for E in (64, 128)),
        *(_loss(V) for V in (32768, 131072)),
        *(_adamw(dtype) for dtype in (torch.bfloat16, torch.float32)),
        _planes(),
    ]
