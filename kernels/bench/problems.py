"""The problems that `--tune` measures: per op and bucket, every configuration and every backend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fmscale.kernels import (
    adamw_step,
    attention,
    linear_cross_entropy,
    rms_norm,
    rope,
    split_byte_planes,
    swiglu,
)
from fmscale.kernels.adamw import configs as adamw_configs
from fmscale.kernels.attention import case as attention_case
from fmscale.kernels.attention_configs import configs as attention_configs
from fmscale.kernels.byte_planes import configs as plane_configs
from fmscale.kernels.dispatch import Config, bucket
from fmscale.kernels.linear_cross_entropy import configs as loss_configs
from fmscale.kernels.linear_cross_entropy import linear_cross_entropy_eager
from fmscale.kernels.rms_norm import configs as norm_configs
from fmscale.kernels.rope import configs as rope_configs
from fmscale.kernels.rope import rope_eager, rope_turns
from fmscale.kernels.swiglu import configs as swiglu_configs
from torch import Tensor

BF16 = torch.bfloat16


Runs = tuple[Mapping[str, Callable[[], list[Tensor]]], Callable[[], list[Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One op in one bucket."""

    op: str
    """The op's name in the dispatch table."""
    bucket: str
    """The bucket's name."""
    kernels: Mapping[str, tuple[Config, ...]]
    """Per kernel the configurations to try; the first is the default."""
    make: Callable[[torch.device], Runs]
    """On a device: what runs the op per backend ("eager" among them), and the fp64 golden result."""


def _differentiated(
    shapes: list[tuple[int, ...]], ours: Callable[..., Any], eager: Callable[..., Any],
    others: Mapping[str, Callable[..., Any]] | None = None, dtype: torch.dtype = BF16,
) -> Callable[[torch.device], Runs]:  # fmt: skip
    """Outputs and gradients for random inputs of `shapes`."""

    def make(device: torch.device) -> Runs:
        generator = torch.Generator(device).manual_seed(0)
        inputs = [torch.randn(s, device=device, generator=generator).to(dtype) for s in shapes]

        def run(function: Callable[..., Any], of: list[Tensor]) -> list[Tensor]:
            leaves = [t.detach().requires_grad_() for t in of]
            result = function(*leaves)
            outputs = list(result) if isinstance(result, tuple) else [result]
            # the same for every backend and dtype: each rounds what was drawn once in `dtype`
            draws = torch.Generator(device).manual_seed(1)
            upstream = [
                torch.randn(o.shape, device=device, generator=draws).to(dtype).to(o.dtype) for o in outputs
            ]
            return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, leaves, upstream))

        backends = {"triton": ours, "eager": eager, **(others or {})}
        wide = [t.double() for t in inputs]
        return (
            {name: (lambda f=f: run(f, inputs)) for name, f in backends.items()},
            lambda: run(eager, wide),
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


def _attention(E: int, documents: bool) -> Problem:
    T, H, K = 4096, 16, 4
    flags = {"causal": True, "window": False, "softcap": False, "sinks": False}

    def cu(t: Tensor) -> Tensor:
        return torch.tensor([0, 700, 701, 1725, 3000, T], dtype=torch.int32, device=t.device)

    def with_backend(backend: str) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, cu_seqlens=cu(q) if documents else None, backend=backend)

        return run

    others = {} if documents else {"sdpa": with_backend("sdpa")}
    return Problem(
        op="attention", bucket=attention_case(BF16, E, documents=documents, **flags),
        kernels=attention_configs(BF16, E),
        make=_differentiated(
            [(T, H, E), (T, K, E), (T, K, E)], with_backend("triton"), with_backend("eager"), others
        ),
    )  # fmt: skip


def _adamw(dtype: torch.dtype) -> Problem:
    def make(device: torch.device) -> Runs:
        generator = torch.Generator(device).manual_seed(0)
        master, first = (torch.randn(2**26, device=device, generator=generator) for _ in range(2))
        fixed = [master, first.to(dtype), first, master.square()]

        def run(backend: str, of: list[Tensor]) -> list[Tensor]:
            state = [t.clone() for t in of]
            if backend == "golden":
                from fmscale.kernels.adamw import adamw_step_eager

                adamw_step_eager(state[0], state[1], state[2], state[3], lr=1e-3, step=10)
            else:
                adamw_step(state[0], state[1], state[2], state[3], lr=1e-3, step=10, backend=backend)
            return [state[0], state[2], state[3]]

        return (
            {name: (lambda name=name: run(name, fixed)) for name in ("triton", "eager")},
            lambda: run("golden", [t.double() for t in fixed]),
        )

    return Problem(op="adamw_step", bucket=str(dtype), kernels=adamw_configs(), make=make)


def _planes() -> Problem:
    def make(device: torch.device) -> Runs:
        x = torch.randn(2**26, device=device)

        def run(backend: str) -> list[Tensor]:
            return [split_byte_planes(x, backend=backend).float()]

        backends = {name: (lambda name=name: run(name)) for name in ("triton", "eager")}
        return backends, lambda: [split_byte_planes(x, backend="eager").double()]

    split = {"split": plane_configs()["split"]}
    return Problem(op="split_byte_planes", bucket=str(torch.int32), kernels=split, make=make)


def problems() -> list[Problem]:
    """Every op at the model sizes that runs use."""
    return [
        *(_attention(E, documents) for E in (64, 128) for documents in (False, True)),
        *(_norm(D) for D in (128, 1024, 2048, 4096, 8192)),
        *(_swiglu(F) for F in (4096, 8192, 16384)),
        *(_rope(E) for E in (64, 128)),
        *(_loss(V) for V in (32768, 131072)),
        *(_adamw(dtype) for dtype in (torch.bfloat16, torch.float32)),
        _planes(),
    ]
