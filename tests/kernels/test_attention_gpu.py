"""Attention on a GPU: the features at real sizes, the same bits a thousand times, memory, batches."""

from typing import Any

import pytest
import torch
from fmscale.kernels import attention
from fmscale.kernels.attention_common import block_e
from fmscale.kernels.attention_configs import configs
from fmscale.kernels.dispatch import forced

from tests.kernels.attention_problems import Problem, judge, pairwise, results

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
@pytest.mark.parametrize("E", [64, 80, 128, 192, 256])
@pytest.mark.parametrize("heavy", [False, True])
def test_every_shipped_configuration(dtype: torch.dtype, E: int, heavy: bool, device: torch.device) -> None:
    """A miscompiled configuration would be chosen by no test of the default alone."""
    heavy = heavy or block_e(E) != E
    wanted = Problem(
        dtype=dtype, E=E, documents=(700, 1, 300), H=8, K=2, window=200 if heavy else None,
        softcap=30.0 if heavy else None,
    )  # fmt: skip
    for kernel, table in configs(dtype, block_e(E), heavy=heavy).items():
        for launch in table:
            with forced("attention", kernel, launch):
                judge(wanted, device)


def test_a_thousand_repeats_are_the_same_bits(device: torch.device) -> None:
    """Also while another kernel keeps the machine busy, so that programs finish in other orders."""
    wanted = Problem(
        dtype=torch.bfloat16, E=128, H=16, K=4, documents=(1500, 0, 40, 1000, 508), window=600, sinks=True
    )
    inputs = wanted.tensors(device)
    first = results(wanted, inputs, "triton")
    side = torch.cuda.Stream(device)
    load = torch.randn(2048, 2048, device=device)
    for repeat in range(1000):
        if repeat % 2:
            with torch.cuda.stream(side):
                load = (load @ load).clamp(-1, 1)
        again = results(wanted, inputs, "triton")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), repeat


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    wanted = Problem(B=4, T=1500, S=1500, E=128, dtype=torch.bfloat16, H=8, K=2)
    inputs = wanted.tensors(device)
    whole = wanted.run(*inputs, backend="triton")
    for b in range(4):
        alone = wanted.run(*(x[b : b + 1] for x in inputs), backend="triton")
        assert all(torch.equal(x[b : b + 1], y) for x, y in zip(whole, alone, strict=True))


def test_memory_grows_with_tokens_not_their_square(device: torch.device) -> None:
    """Beyond inputs, outputs and gradients: log-sum-exp, delta and level, 12 bytes a row and head, and the tiles."""

    def extra(T: int) -> int:
        H, K, E = 8, 2, 128
        q, k, v = (
            torch.randn(T, h, E, device=device, dtype=torch.bfloat16).requires_grad_() for h in (H, K, K)
        )
        cu = torch.arange(0, T + 1, T // 8, device=device, dtype=torch.int32)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = attention(q, k, v, cu_seqlens=cu, backend="triton")
        grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        named = 2 * out.nbytes + sum(g.nbytes for g in grads)  # the output, its gradient, the gradients
        return torch.cuda.max_memory_allocated(device) - before - named

    extra(8192)
    small, large = extra(16384), extra(65536)
    assert large <= 4.5 * small
    assert large <= 65536 * 8 * 16 + 2**21


def test_offsets_past_31_bits(device: torch.device) -> None:
    T, H, E = 2**19, 40, 128
    assert T * H * E > 2**31
    q = torch.randn(T, H, E, device=device, dtype=torch.bfloat16)
    kv = torch.randn(T, 1, E, device=device, dtype=torch.bfloat16)
    cu = torch.tensor([0, T - 300, T], device=device, dtype=torch.int32)
    out = attention(q, kv, kv, cu_seqlens=cu, window=128, backend="triton")
    alone = attention(q[-300:], kv[-300:], kv[-300:], window=128, backend="triton")
    assert torch.equal(out[-300:], alone)


def test_compiled_by_inductor(device: torch.device) -> None:
    wanted = Problem(documents=(200, 13, 700), sinks=True, window=90, dtype=torch.bfloat16, E=64)
    q, k, v, sinks = (x.requires_grad_() for x in wanted.tensors(device))
    run = torch.compile(lambda *x: wanted.run(*x, backend="triton"), fullgraph=True)
    got, plain = run(q, k, v, sinks), wanted.run(q, k, v, sinks, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
