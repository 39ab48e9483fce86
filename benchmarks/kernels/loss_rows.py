"""The row of the fused linear cross-entropy: rate, and memory beyond the gradients themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional
from fmscale.kernels import linear_cross_entropy
from torch import Tensor

from benchmarks.kernels import peers
from benchmarks.kernels.contest import Contest, Contestant, ContestRow, both_of
from benchmarks.kernels.memory_rows import LIGER
from benchmarks.kernels.sizes import Sizes

Function = Callable[..., Any]


def loss_rows(sizes: Sizes) -> list[ContestRow]:
    """Forward and backward of the summed loss together, as in the trainer."""
    T, D, V = sizes.loss_tokens, sizes.hidden, sizes.vocabulary

    def build(device: torch.device) -> Contest:
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(T, D, device=device, generator=generator).to(sizes.dtype)
        weight = (torch.randn(V, D, device=device, generator=generator) * D**-0.5).to(sizes.dtype)
        labels = torch.randint(0, V, (T,), device=device, generator=generator)
        one = torch.ones((), device=device)

        def ours(h: Tensor, w: Tensor) -> Tensor:
            return linear_cross_entropy(h, w, labels, backend="triton")[0]

        def whole(h: Tensor, w: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy((h @ w.t()).float(), labels, reduction="sum")

        def liger() -> Function:
            loss = peers.module(LIGER, "liger-kernel").liger_fused_linear_cross_entropy
            return lambda h, w: loss(h, w, labels, reduction="sum")

        def chunked() -> Function:
            options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined,unused-ignore]
            loss = torch.nn.functional.linear_cross_entropy  # type: ignore[attr-defined,unused-ignore]
            return lambda h, w: loss(h, w, labels, reduction="sum", options=options)

        def contestant(function: Function, of: list[Tensor], up: Tensor) -> Contestant:
            def summed(h: Tensor, w: Tensor) -> Tensor:
                return function(h, w).to(up.dtype)  # type: ignore[no-any-return]

            return both_of(summed, of, [up])

        def exact() -> list[Tensor]:
            return contestant(whole, [hidden.float(), weight.float()], one).numbers()

        def finish() -> Mapping[str, float]:
            if device.type != "cuda":
                return {}
            run = contestant(ours, [hidden, weight], one).run
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            gradients = (hidden.numel() + weight.numel()) * sizes.dtype.itemsize
            return {"extra GiB": (torch.cuda.max_memory_allocated() - before - gradients) / 2**30}

        functions: dict[str, Callable[[], Function]] = {
            "ours": lambda: ours,
            "eager": lambda: whole,
            "compiled": lambda: peers.compiled(whole),
            "liger": liger,
            "torch linear_cross_entropy": chunked,
        }
        makers = {name: lambda make=make: contestant(make(), [hidden, weight], one) for name, make in functions.items()}
        return Contest(makers=makers, reference=exact, finish=finish)

    flops = 6.0 * T * D * V
    moved = 3 * (T * D + V * D) * sizes.dtype.itemsize
    return [
        ContestRow(
            id="fused linear CE fwd+bwd", variant=f"V={V}", unit="TFLOP/s", flops=flops, bytes=moved,
            build=build,
        )
    ]  # fmt: skip
