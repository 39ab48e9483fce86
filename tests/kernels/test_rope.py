from collections.abc import Callable
from typing import Any

import pytest
import torch
from fmscale.kernels.rope import rope
from fmscale.kernels.rope_eager import document_positions, rope_eager, rope_turns
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmscale.errors import KernelError
from tests.kernels.attention.attention_problems import far
from tests.kernels.policy import check_op, noted

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Rotation = Callable[..., tuple[Tensor, ...]]


def pair(positions: Tensor, E: int, interleaved: bool = False) -> tuple[Rotation, Rotation]:
    """The op and its reference as functions of (q, k) or (q, k, q_weight, k_weight)."""
    turns = rope_turns(E, 10000.0, positions.device)

    def options(weights: tuple[Tensor, ...]) -> dict[str, Any]:
        norm: dict[str, Any] = dict(zip(("q_weight", "k_weight"), weights, strict=False))
        return norm | {"interleaved": interleaved}

    def ours(q: Tensor, k: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return rope(q, k, positions, backend="triton", **options(weights))

    def eager(q: Tensor, k: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return rope_eager(q, k, positions, turns=turns, **options(weights))

    return ours, eager


def heads(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_output_and_gradients(dtype: torch.dtype, norm: bool, interleaved: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    T, H, K, E = 5, 18, 3, 24
    inputs = [heads(dtype, device, T, H, E), heads(dtype, device, T, K, E)]
    inputs += [heads(dtype, device, E), heads(dtype, device, E)] if norm else []
    positions = torch.randint(0, 4096, (T,), device=device)
    ours, eager = pair(positions, E, interleaved)
    upstream = [heads(torch.float32, device, T, n, E) for n in (H, K)]
    check_op(ours, eager, inputs, upstream)


def test_a_first_call_in_inference_mode_leaves_later_ones_trainable(device: torch.device) -> None:
    q, k = heads(torch.float32, device, 3, 2, 22), heads(torch.float32, device, 3, 1, 22)
    positions = torch.arange(3, device=device)
    with torch.inference_mode():
        rope(q, k, positions, theta=777.0, backend="triton")
    q.requires_grad_()
    rope(q, k, positions, theta=777.0, backend="triton")[0].sum().backward()
    assert q.grad is not None


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(0, 2), T=st.integers(1, 5), H=st.integers(1, 9), K=st.integers(1, 9),
    half=st.integers(1, 20),
)  # fmt: skip
def test_any_shape(device: torch.device, batch: int, T: int, H: int, K: int, half: int) -> None:
    torch.manual_seed(1)
    inputs = [heads(torch.float32, device, batch, T, n, 2 * half) for n in (H, K)]
    ours, eager = pair(torch.arange(T, dtype=torch.int32, device=device), 2 * half)
    check_op(ours, eager, inputs, [torch.ones_like(t) for t in inputs])


def test_queries_and_keys_of_one_projection(device: torch.device) -> None:
    """Views into a fused (T, H + K, E) projection are read in place and get their gradient there."""
    both = torch.randn(6, 5, 16, device=device)
    ours, eager = pair(torch.arange(6, device=device), 16)

    def split(function: Rotation) -> Rotation:
        return lambda t: function(t[:, :4], t[:, 4:])

    upstream = [torch.randn(6, n, 16, device=device) for n in (4, 1)]
    check_op(split(ours), split(eager), [both], upstream)


@pytest.mark.parametrize("norm", [False, True])
def test_heads_far_apart(norm: bool, device: torch.device, checked_overflow: None) -> None:
    """With heads as the first axis a head's stride is all tokens: the last of many heads lies past 2^31 elements."""
    near = [heads(torch.float16, device, 3, 4, 8) for _ in range(2)]
    distant = [far(x, 8, 2**30, 1) for x in near]
    weights = [heads(torch.float16, device, 8) for _ in range(2)] if norm else []
    ours, _ = pair(torch.arange(3, device=device), 8)

    def run(q: Tensor, k: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, *weights)]
        outs = ours(*leaves)
        upstream = [far(torch.ones_like(x), *q.stride()) for x in outs]
        return [*outs, *torch.autograd.grad(outs, leaves, upstream)]

    assert all(torch.equal(a, b) for a, b in zip(run(*distant), run(*near), strict=True))


def test_weights_of_any_stride(device: torch.device) -> None:
    q, k = heads(torch.float32, device, 3, 2, 8), heads(torch.float32, device, 3, 1, 8)
    wide = torch.randn(8, 2, device=device)
    ours, _ = pair(torch.arange(3, device=device), 8)
    strided, plain = ours(q, k, wide[:, 0], wide[:, 1]), ours(q, k, *wide.t().contiguous())
    assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True))


def test_positions_restart_with_each_document(device: torch.device) -> None:
    lengths = [3, 0, 1, 5]
    cu_seqlens = torch.tensor([0, 3, 3, 4, 9], dtype=torch.int32, device=device)
    positions = document_positions(cu_seqlens, 9)
    assert positions.tolist() == [i for n in lengths for i in range(n)]
    q, k = heads(torch.float32, device, 9, 2, 16), heads(torch.float32, device, 9, 1, 16)
    packed = rope(q, k, positions, backend="triton")
    for start, end in ((0, 3), (3, 4), (4, 9)):
        alone = rope(q[start:end], k[start:end], torch.arange(end - start, device=device), backend="triton")
        assert all(torch.equal(p[start:end], a) for p, a in zip(packed, alone, strict=True))


def test_no_phase_is_lost_far_out(device: torch.device) -> None:
    """At position 2**24 an fp32 angle is off by half a radian."""
    q = k = torch.randn(4, 1, 64, device=device)
    positions = torch.tensor([2**24 - 1, 2**24 + 1, 2**20 + 7, 0], device=device)
    ours, eager = pair(positions, 64)
    check_op(ours, eager, [q, k], [torch.ones_like(q)] * 2)


def test_a_plain_rotation_keeps_no_activations(device: torch.device) -> None:
    q, k = (torch.randn(4, 2, 8, device=device, requires_grad=True) for _ in range(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(noted(kept), lambda t: t):
        rope(q, k, torch.arange(4, device=device), backend="triton")
    assert not {t.data_ptr() for t in kept} & {q.data_ptr(), k.data_ptr()}


def test_scaled_frequencies(device: torch.device) -> None:
    q, k = (torch.randn(5, 2, 8, device=device) for _ in range(2))
    positions = torch.arange(5, device=device)
    slow = rope(q, k, positions, turns=rope_turns(8, 10000.0, device) / 4, backend="triton")
    torch.testing.assert_close(slow, rope(q, k, positions / 4, backend="eager"))


def test_gradcheck() -> None:
    if torch.cuda.is_available():
        pytest.skip("the fp64 path is for the interpreter")
    inputs = tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 6), (3, 1, 6), 6, 6))
    ours, _ = pair(torch.tensor([5, 0, 700]), 6)
    assert torch.autograd.gradcheck(ours, inputs[:2], fast_mode=True)
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


def test_registration(device: torch.device) -> None:
    q, k, weight = (torch.randn(s, device=device, requires_grad=True) for s in ((3, 2, 8), (3, 1, 8), 8))
    rest = (torch.arange(3, device=device), rope_turns(8, 10000.0, device))
    op = torch.ops.fmscale.rope.default
    torch.library.opcheck(op, (q, k, *rest, None, None, 1e-6, False, False))
    torch.library.opcheck(op, (q, k, *rest, weight, weight, 1e-6, False, False))


def test_compiles_whole(device: torch.device) -> None:
    q, k = (torch.randn(3, 2, 8, device=device, requires_grad=True) for _ in range(2))

    def rotate(q: Tensor, k: Tensor, cu: Tensor) -> tuple[Tensor, Tensor]:
        return rope(q, k, document_positions(cu, 3), backend="triton")

    cu_seqlens = torch.tensor([0, 1, 3], device=device)
    got = torch.compile(rotate, fullgraph=True, backend="aot_eager")(q, k, cu_seqlens)
    wanted = rotate(q, k, cu_seqlens)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_errors_name_what_to_do(device: torch.device) -> None:
    q = torch.ones(4, 2, 8, device=device)
    for positions, k, weight in (
        (torch.arange(5, device=device), q, None),
        (torch.arange(4, device=device), q[..., :6], None),
        (torch.arange(4, device=device), q, q[0, 0]),
    ):
        with pytest.raises(KernelError, match="one position a token"):
            rope(q, k, positions, q_weight=weight)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", [False, True])
def test_real_sizes(norm: bool, device: torch.device) -> None:
    T, H, K, E = 16384, 32, 8, 128
    inputs = [heads(torch.bfloat16, device, T, n, E) for n in (H, K)]
    inputs += [heads(torch.bfloat16, device, E) for _ in range(2)] if norm else []
    ours, eager = pair(torch.arange(T, device=device) % 1000, E)
    check_op(ours, eager, inputs, [heads(torch.float32, device, T, n, E) for n in (H, K)])
