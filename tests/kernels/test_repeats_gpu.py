"""The backward of RoPE with its norm, of the fused cross-entropy and of SwiGLU: the same bits every time."""

from collections.abc import Callable

import pytest
import torch
from fmscale.kernels import linear_cross_entropy, rope, swiglu
from torch import Tensor

pytestmark = pytest.mark.gpu
REPEATS = 200
BF16 = torch.bfloat16


def random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device).to(BF16).requires_grad_()


def rope_with_norm(device: torch.device) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    positions = torch.arange(4096, device=device)

    def run(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, ...]:
        return rope(q, k, positions, q_weight=q_weight, k_weight=k_weight, backend="triton")

    return run, [random(device, 4096, heads, 128) for heads in (32, 8)] + [random(device, 128) for _ in range(2)]


def fused_loss(device: torch.device) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    labels = torch.randint(0, 32000, (2048,), device=device)

    def run(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return linear_cross_entropy(hidden, weight, labels, chunk_bytes=2**25, z_loss=1e-4, backend="triton")[:1]

    return run, [random(device, 2048, 512), random(device, 32000, 512)]


def gated(device: torch.device) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    return lambda gate, up: (swiglu(gate, up, backend="triton"),), [random(device, 2048, 14336) for _ in range(2)]


@pytest.mark.parametrize("make", [rope_with_norm, fused_loss, gated])
def test_repeats_are_the_same_bits(
    make: Callable[[torch.device], tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]],
    device: torch.device,
) -> None:
    """Half of the repeats run while matrix products keep the device busy."""
    run, leaves = make(device)
    upstream = [torch.randn_like(x) for x in run(*leaves)]
    side = torch.cuda.Stream(device)
    load = torch.randn(2048, 2048, device=device)
    first: list[Tensor] | None = None
    for repeat in range(REPEATS):
        if repeat % 2:
            with torch.cuda.stream(side):
                for _ in range(8):
                    load = (load @ load).clamp(-1, 1)
        outs = run(*leaves)
        again = [*(x.detach() for x in outs), *torch.autograd.grad(outs, leaves, upstream)]
        first = first or again
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), repeat
