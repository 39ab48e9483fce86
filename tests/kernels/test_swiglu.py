from collections.abc import Callable

import pytest
import torch
from fmscale.kernels.swiglu import swiglu, swiglu_eager
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmscale.errors import KernelError
from tests.kernels.policy import check_op, noted

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def ours(gate: Tensor, up: Tensor) -> Tensor:
    return swiglu(gate, up, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 160), (3, 1500)])
def test_output_and_gradients(dtype: torch.dtype, shape: tuple[int, int], device: torch.device) -> None:
    torch.manual_seed(0)
    inputs = [3 * torch.randn(shape, device=device).to(dtype) for _ in range(2)]
    check_op(ours, swiglu_eager, inputs, [torch.randn(shape, device=device)])


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(0, 3), tokens=st.integers(1, 7), F=st.integers(1, 1100))
def test_any_shape(device: torch.device, batch: int, tokens: int, F: int) -> None:
    torch.manual_seed(1)
    inputs = [torch.randn(batch, tokens, F, device=device) for _ in range(2)]
    check_op(ours, swiglu_eager, inputs, [torch.randn(batch, tokens, F, device=device)])


def test_halves_of_one_projection(device: torch.device) -> None:
    both = torch.randn(5, 7, 2 * 48, device=device)

    def halves(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda t: function(*t.chunk(2, -1))

    check_op(halves(ours), halves(swiglu_eager), [both], [torch.randn(5, 7, 48, device=device)])


def test_far_from_zero(device: torch.device) -> None:
    """exp overflows at 88 in fp32: the ends must still be 0 and the identity, with finite gradients."""
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], device=device, requires_grad=True)
    up = torch.ones(5, device=device)
    y = ours(gate, up)
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 0.0, 100.0, 1e4], device=device))
    grad = torch.autograd.grad(y.sum(), gate)[0]
    torch.testing.assert_close(grad, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0], device=device))


def test_nothing_but_the_inputs_is_kept(device: torch.device) -> None:
    gate, up = (torch.randn(4, 8, device=device, requires_grad=True) for _ in range(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(noted(kept), lambda t: t):
        ours(gate, up)
    assert {t.data_ptr() for t in kept} == {gate.data_ptr(), up.data_ptr()}


def test_gradcheck() -> None:
    if torch.cuda.is_available():
        pytest.skip("the fp64 path is for the interpreter")
    inputs = tuple(torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


def test_registration(device: torch.device) -> None:
    gate, up = (torch.randn(4, 8, device=device, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.fmscale.swiglu.default, (gate, up))


def test_compiles_whole(device: torch.device) -> None:
    gate, up = (torch.randn(4, 8, device=device, requires_grad=True) for _ in range(2))
    got = torch.compile(ours, fullgraph=True, backend="aot_eager")(gate, up)
    wanted = ours(gate, up)
    assert torch.equal(got, wanted)
    grads = [torch.autograd.grad(t.sum(), (gate, up)) for t in (got, wanted)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_unequal_inputs_are_refused(device: torch.device) -> None:
    with pytest.raises(KernelError, match="one shape and dtype"):
        swiglu(torch.ones(2, 4, device=device), torch.ones(2, 5, device=device))


@pytest.mark.gpu
def test_real_sizes(device: torch.device) -> None:
    inputs = [torch.randn(8192, 14336, device=device).bfloat16() for _ in range(2)]
    check_op(ours, swiglu_eager, inputs, [torch.randn(8192, 14336, device=device)])
