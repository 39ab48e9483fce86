"""Attention on a GPU: the features at real sizes, the same bits a thousand times, memory, batches."""

from typing import Any

import pytest
import torch
from fmscale.kernels import flash_attention
from fmscale.kernels.attention.backward import delta_kernel, dkdv_kernel, dq_kernel
from fmscale.kernels.attention.configs import configs
from fmscale.kernels.attention.device import block_e
from fmscale.kernels.attention.forward import forward_kernel
from fmscale.kernels.attention.tiles import slots_kernel
from fmscale.kernels.dispatch import forced
from torch import Tensor

from tests.kernels.attention.attention_problems import Problem, judge, pairwise, results

pytestmark = pytest.mark.gpu
SHAPES: list[dict[str, Any]] = [
    {"B": 2, "T": 1024, "S": 1024},
    {"T": 799, "S": 2048},
    {"T": 2048, "S": 799},
    {"T": 1023, "S": 1024},
    {"documents": (1000, 0, 1, 127, 128, 129, 700)},
    {"documents": (511, 3), "tail": 77},
    {"documents": (200, 0, 300), "keys": (900, 4, 128)},
]
CASES = pairwise(
    {
        "shape": SHAPES, "heads": [(8, 8), (8, 2), (8, 1)], "E": [32, 64, 80, 96, 128, 192, 256],
        "dtype": [torch.bfloat16, torch.float16, torch.float32], "causal": [True, False],
        "window": [None, 1, 128, 500], "softcap": [None, 30.0], "sinks": [False, True],
    }
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pair_of_features(case: dict[str, Any], device: torch.device) -> None:
    rest = dict(case)
    shape, (H, K) = rest.pop("shape"), rest.pop("heads")
    judge(Problem(H=H, K=K, **shape, **rest), device, small=rest["window"] == 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("E", "heavy"),
    [(64, False), (64, True), (80, True), (128, False), (128, True), (192, True), (256, False), (256, True)],
)
def test_every_shipped_configuration(dtype: torch.dtype, E: int, heavy: bool, device: torch.device) -> None:
    """Tests of the default alone would miss a miscompiled configuration; padded head dims are heavy."""
    wanted = Problem(
        dtype=dtype, E=E, documents=(700, 1, 300), H=8, K=2, window=200 if heavy else None,
        softcap=30.0 if heavy else None,
    )  # fmt: skip
    for kernel, table in configs(dtype, block_e(E), heavy=heavy).items():
        for launch in table:
            with forced("attention", kernel, launch):
                judge(wanted, device)


def packed(leaves: list[Tensor], offsets: dict[str, Tensor | None], *, window: int) -> tuple[Tensor, Tensor]:
    """Attention of q, k, v and sinks, like `Problem.run` without the construction of offsets, which waits."""
    q, k, v, sinks = leaves
    return flash_attention(
        q,
        k,
        v,
        cu_seqlens=offsets["cu_seqlens"],
        window=window,
        sinks=sinks,
        return_lse=True,
        backend="triton",
    )


def test_a_thousand_repeats_are_the_same_bits(device: torch.device) -> None:
    """Repeats also run beside another kernel, so that programs finish in other orders."""
    wanted = Problem(dtype=torch.bfloat16, E=128, H=16, K=4, documents=(1500, 0, 40, 1000, 508), window=600, sinks=True)
    leaves = [x.requires_grad_() for x in wanted.tensors(device)]
    offsets = wanted.offsets(device)
    side = torch.cuda.Stream(device)
    load = torch.randn(2048, 2048, device=device)
    upstream = [u.to(x.dtype) for u, x in zip(wanted.upstream(device), (leaves[0], load), strict=True)]
    busy = 0

    def once(matmuls: int) -> list[Tensor]:
        nonlocal load, busy
        ended = torch.cuda.Event()

        def enqueue() -> None:
            nonlocal load
            with torch.cuda.stream(side):
                for _ in range(matmuls):
                    load = (load @ load).clamp(-1, 1)
                ended.record(side)

        enqueue()
        outs = packed(leaves, offsets, window=600)
        enqueue()
        grads = torch.autograd.grad(outs, leaves, upstream)
        busy += not ended.query()
        return [*(x.detach() for x in outs), *grads]

    first = once(0)
    for repeat in range(1000):
        again = once(8 * (repeat % 2))
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), repeat
    assert busy


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    wanted = Problem(B=4, T=1500, S=1500, E=128, dtype=torch.bfloat16, H=8, K=2)
    inputs, upstream = wanted.tensors(device), wanted.upstream(device)

    def run(rows: slice) -> list[Tensor]:
        leaves = [x[rows].detach().requires_grad_() for x in inputs]
        outs = wanted.run(*leaves, backend="triton")
        weights = [u[rows].to(o.dtype) for u, o in zip(upstream, outs, strict=True)]
        return [*outs, *torch.autograd.grad(outs, leaves, weights)]

    whole = run(slice(None))
    for b in range(4):
        alone = run(slice(b, b + 1))
        assert all(torch.equal(x[b : b + 1], y) for x, y in zip(whole, alone, strict=True))


def test_nothing_waits_for_the_device(device: torch.device) -> None:
    """By CUDA's own check a wait in the forward or backward is an error, after the kernels' compilation."""
    wanted = Problem(dtype=torch.bfloat16, E=64, documents=(700, 0, 300), tail=24, window=200, sinks=True)
    leaves = [x.requires_grad_() for x in wanted.tensors(device)]
    upstream = [u.to(torch.bfloat16 if u.dim() == 3 else u.dtype) for u in wanted.upstream(device)]
    offsets = wanted.offsets(device)

    def both() -> None:
        outs = packed(leaves, offsets, window=200)
        torch.autograd.grad(outs, leaves, upstream)

    both()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_layout_of_documents_compiles_again(device: torch.device) -> None:
    """Counts that are 1, odd or a multiple of 16 use cached kernels of other counts."""
    kernels: tuple[Any, ...] = (slots_kernel, forward_kernel, delta_kernel, dkdv_kernel, dq_kernel)

    def compiled() -> list[int]:
        return [len(kernel.made.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    sizes = []
    for documents in ((33, 7), (1,), (16,), (1024,), (5,) * 16, (64,) * 255, (3000, 0, 24)):
        wanted = Problem(dtype=torch.bfloat16, E=64, H=4, K=4, documents=documents)
        results(wanted, wanted.tensors(device), "triton")
        sizes.append(compiled())
    assert all(one == sizes[0] for one in sizes)
    assert all(sizes[0])


def test_memory_grows_with_tokens_not_their_square(device: torch.device) -> None:
    """Beyond inputs, outputs and gradients: log-sum-exp, delta and level, 12 bytes a row and head, and the tiles."""

    def extra(T: int) -> int:
        H, K, E = 8, 2, 128
        q, k, v = (torch.randn(T, h, E, device=device, dtype=torch.bfloat16).requires_grad_() for h in (H, K, K))
        cu = torch.arange(0, T + 1, T // 8, device=device, dtype=torch.int32)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = flash_attention(q, k, v, cu_seqlens=cu, backend="triton")
        grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        named = 2 * out.nbytes + sum(g.nbytes for g in grads)  # the output, its gradient, the gradients
        return torch.cuda.max_memory_allocated(device) - before - named

    extra(8192)
    small, large = extra(16384), extra(65536)
    assert large <= 4.5 * small
    assert large <= 65536 * 8 * 16 + 2**21


def test_offsets_past_31_bits(device: torch.device) -> None:
    """Every tensor has such offsets: inputs, output and all gradients."""
    T, H, E = 2**19, 40, 128
    assert T * H * E > 2**31
    leaves = [
        torch.randn(T, H, E, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(3)
    ]  # 5 GiB each, as are the output, its gradient and the three others
    dout = torch.randn(T, H, E, device=device, dtype=torch.bfloat16)
    cu = torch.tensor([0, T - 300, T], device=device, dtype=torch.int32)

    def run(tensors: list[Tensor], dout: Tensor, cu: Tensor | None) -> list[Tensor]:
        out = flash_attention(*tensors, cu_seqlens=cu, window=128, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, tensors, dout)]

    alone = run([x[-300:].detach().requires_grad_() for x in leaves], dout[-300:], cu[:1].new_tensor([0, 300]))
    found = run(leaves, dout, cu)
    assert all(torch.equal(x[-300:], y) for x, y in zip(found, alone, strict=True))


def test_compiled_by_inductor(device: torch.device) -> None:
    wanted = Problem(documents=(200, 13, 700), sinks=True, window=90, dtype=torch.bfloat16, E=64)
    q, k, v, sinks = (x.requires_grad_() for x in wanted.tensors(device))
    run = torch.compile(lambda *x: wanted.run(*x, backend="triton"), fullgraph=True)
    got, plain = run(q, k, v, sinks), wanted.run(q, k, v, sinks, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
