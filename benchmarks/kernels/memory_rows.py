"""The rows that bandwidth limits: norm, rotation, activation, optimizer, byte planes."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional
from fmscale.kernels import adamw_step, rms_norm, rope, split_byte_planes, swiglu
from fmscale.kernels.adamw import adamw_step_eager
from fmscale.kernels.byte_planes import split_byte_planes_eager
from fmscale.kernels.rms_norm import rms_norm_eager
from fmscale.kernels.rope_eager import rope_eager, rope_turns
from fmscale.kernels.swiglu import swiglu_eager
from torch import Tensor

from benchmarks.kernels import peers
from benchmarks.kernels.contest import Contest, Contestant, ContestRow, backward_of, forward_of
from benchmarks.kernels.sizes import Sizes

Function = Callable[..., Any]
LIGER = "liger_kernel.transformers.functional"


def _row(
    id: str, sizes: Sizes, shapes: list[tuple[int, ...]], moved: int, operations: float, golden: Function,
    functions: Callable[[torch.device], dict[str, Callable[[], Function]]], *, gradient: bool = False,
) -> ContestRow:  # fmt: skip
    """A row over random inputs of `shapes`; the upstream gradient has the first input's shape."""

    def build(device: torch.device) -> Contest:
        generator = torch.Generator(device).manual_seed(0)
        inputs = [torch.randn(s, device=device, generator=generator).to(sizes.dtype) for s in shapes]
        upstream = [torch.randn(shapes[0], device=device, generator=generator).to(sizes.dtype)]

        def contestant(function: Function, of: list[Tensor], up: list[Tensor]) -> Contestant:
            return backward_of(function, of, up) if gradient else forward_of(function, of)

        def exact() -> list[Tensor]:
            return contestant(golden, [t.float() for t in inputs], [t.float() for t in upstream]).numbers()

        makers = {
            # some peers write to their inputs: every contestant has its own copy
            name: lambda make=make: contestant(make(), [t.clone() for t in inputs], upstream)
            for name, make in functions(device).items()
        }
        return Contest(makers=makers, reference=exact)

    return ContestRow(id=id, variant="", unit="TB/s", flops=operations, bytes=moved, build=build)


def _norms(sizes: Sizes) -> list[ContestRow]:
    M, D, size = sizes.rows, sizes.hidden, sizes.dtype.itemsize
    shapes: list[tuple[int, ...]] = [(M, D), (D,)]

    def torch_norm(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (D,), w, 1e-6)

    def liger() -> Function:
        norm = peers.module(LIGER, "liger-kernel").liger_rms_norm
        return lambda x, w: norm(x, w, 1e-6, in_place=False)

    def plain(_: torch.device) -> dict[str, Callable[[], Function]]:
        return {
            "ours": lambda: lambda x, w: rms_norm(x, w, backend="triton"),
            "eager": lambda: torch_norm,
            "compiled": lambda: peers.compiled(torch_norm),
            "liger": liger,
        }

    def added(_: torch.device) -> dict[str, Callable[[], Function]]:
        def torch_added(x: Tensor, w: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
            h = x + r
            return torch_norm(h, w), h

        def liger_added() -> Function:
            norm = peers.module(LIGER, "liger-kernel").liger_fused_add_rms_norm
            return lambda x, w, r: norm(x, r, w, 1e-6, in_place=False)

        return {
            "ours": lambda: lambda x, w, r: rms_norm(x, w, r, backend="triton"),
            "eager": lambda: torch_added,
            "compiled": lambda: peers.compiled(torch_added),
            "liger": liger_added,
        }

    return [
        _row("RMSNorm fwd", sizes, shapes, 2 * M * D * size, 4 * M * D, rms_norm_eager, plain),
        _row("RMSNorm bwd", sizes, shapes, 3 * M * D * size, 9 * M * D, rms_norm_eager, plain, gradient=True),
        _row("add + RMSNorm fwd", sizes, [*shapes, (M, D)], 4 * M * D * size, 5 * M * D, rms_norm_eager, added),
    ]


def _rotation(sizes: Sizes) -> ContestRow:
    T, E, heads = sizes.tokens, 128, sizes.heads + sizes.kv_heads

    def functions(device: torch.device) -> dict[str, Callable[[], Function]]:
        positions = torch.arange(T, device=device) % sizes.mean_document
        turns = rope_turns(E, 10000.0, device)

        def eager(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            return rope_eager(q, k, positions, turns=turns)

        def liger() -> Function:
            rotate = peers.module(LIGER, "liger-kernel").liger_rope
            angle = (positions.double()[:, None] * turns * 2 * torch.pi).repeat(1, 2)
            c, s = (f(angle).to(sizes.dtype)[None] for f in (torch.cos, torch.sin))

            def run(q: Tensor, k: Tensor) -> list[Tensor]:
                # liger rotates in place, which moves the same bytes; the check has copies of the inputs
                return [t[0].transpose(0, 1) for t in rotate(q.transpose(0, 1)[None], k.transpose(0, 1)[None], c, s)]

            return run

        return {
            "ours": lambda: lambda q, k: rope(q, k, positions, backend="triton"),
            "eager": lambda: eager,
            "compiled": lambda: peers.compiled(eager),
            "liger": liger,
        }

    def golden(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(T, device=q.device) % sizes.mean_document
        return rope_eager(q, k, positions, turns=rope_turns(E, 10000.0, q.device))

    shapes: list[tuple[int, ...]] = [(T, sizes.heads, E), (T, sizes.kv_heads, E)]
    moved = 2 * T * heads * E * sizes.dtype.itemsize
    return _row("RoPE fwd", sizes, shapes, moved, 3 * T * heads * E, golden, functions)


def _activation(sizes: Sizes) -> list[ContestRow]:
    M, F, size = sizes.rows, sizes.ffn, sizes.dtype.itemsize

    def torch_swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    def functions(_: torch.device) -> dict[str, Callable[[], Function]]:
        return {
            "ours": lambda: lambda gate, up: swiglu(gate, up, backend="triton"),
            "eager": lambda: torch_swiglu,
            "compiled": lambda: peers.compiled(torch_swiglu),
            "liger": lambda: peers.module(LIGER, "liger-kernel").liger_swiglu,
        }

    shapes: list[tuple[int, ...]] = [(M, F), (M, F)]
    forward = _row("SwiGLU fwd", sizes, shapes, 3 * M * F * size, 5 * M * F, swiglu_eager, functions)
    backward = _row("SwiGLU bwd", sizes, shapes, 5 * M * F * size, 12 * M * F, swiglu_eager, functions, gradient=True)
    return [forward, backward]


def _optimizer(sizes: Sizes) -> ContestRow:
    n = sizes.parameters

    def build(device: torch.device) -> Contest:
        def state(count: int) -> list[Tensor]:
            generator = torch.Generator(device).manual_seed(0)
            master, first = (torch.randn(count, device=device, generator=generator) for _ in range(2))
            return [master, master.to(torch.bfloat16), first, master.square(), master.to(torch.bfloat16)]

        shared = cache(lambda: state(n))
        options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "step": 10}
        norm = torch.tensor(0.5, device=device)

        def ours(master: Tensor, grad: Tensor, first: Tensor, second: Tensor, copy: Tensor) -> None:
            adamw_step(
                master, grad, first, second, copy=copy, grad_norm=norm, max_norm=1.0, backend="triton",
                **options,
            )  # fmt: skip

        def torch_fused() -> Callable[[list[Tensor]], Callable[[], None]]:
            def prepare(of: list[Tensor]) -> Callable[[], None]:
                master, grad, first, second, copy = of
                parameter = torch.nn.Parameter(master)
                parameter.grad = grad.float()
                optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
                step = torch.tensor(9.0, device=device)
                optimizer.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}

                def run() -> None:
                    assert parameter.grad is not None
                    parameter.grad.copy_(grad)
                    optimizer.step()
                    copy.copy_(parameter.detach())

                return run

            return prepare

        def contestant(prepare: Callable[[list[Tensor]], Callable[[], None]]) -> Contestant:
            large = prepare(shared())  # 16 GB, shared: the values that updates leave in it do not change their time

            def numbers() -> list[Tensor]:
                small = state(sizes.checked_parameters)
                prepare(small)()
                return [small[0], small[2], small[3], small[4]]

            return Contestant(run=large, numbers=numbers)

        def exact() -> list[Tensor]:
            master, grad, first, second, copy = (t.double() for t in state(sizes.checked_parameters))
            adamw_step_eager(master, grad, first, second, copy=copy, **options)
            return [master, first, second, copy]

        def eager(master: Tensor, grad: Tensor, first: Tensor, second: Tensor, copy: Tensor) -> None:
            adamw_step_eager(master, grad, first, second, copy=copy, **options)

        makers = {
            "ours": lambda: contestant(lambda of: lambda: ours(*of)),
            "torch fused + copy": lambda: contestant(torch_fused()),
            "eager": lambda: contestant(lambda of: lambda: eager(*of)),
            "compiled": lambda: contestant(lambda of: partial(peers.compiled(eager), *of)),
        }
        return Contest(makers=makers, reference=exact)

    return ContestRow(id="AdamW partition", variant=f"n={n:g}", unit="TB/s", flops=14 * n, bytes=28 * n, build=build)


def _planes(sizes: Sizes) -> ContestRow:
    def build(device: torch.device) -> Contest:
        x = torch.randn(sizes.plane_elements, device=device)
        return Contest(
            makers={
                "ours": lambda: forward_of(lambda t: split_byte_planes(t, backend="triton"), [x]),
                "eager": lambda: forward_of(split_byte_planes_eager, [x]),
                "compiled": lambda: forward_of(peers.compiled(split_byte_planes_eager), [x]),
            },
            reference=lambda: [split_byte_planes_eager(x)],
        )

    n = sizes.plane_elements
    return ContestRow(id="byte-plane split", variant=f"n={n}", unit="TB/s", flops=4 * n, bytes=8 * n, build=build)


def memory_rows(sizes: Sizes) -> list[ContestRow]:
    """Rows of the norm, forward and backward, and of the optimizer."""
    return [*_norms(sizes)[:2], _optimizer(sizes)]


def further_rows(sizes: Sizes) -> list[ContestRow]:
    """Rows of the other ops on which a training step spends bandwidth."""
    return [_norms(sizes)[2], _rotation(sizes), *_activation(sizes), _planes(sizes)]
