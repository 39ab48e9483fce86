import pytest
import torch
from fmscale.kernels.dispatch import forced
from fmscale.kernels.rms_norm import rms_norm, rms_norm_eager
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmscale.errors import KernelError
from tests.kernels.policy import check_op

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def ours(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    return rms_norm(x, weight, residual, backend="triton")


def data(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(40, 96), (3, 2048)])
def test_output_and_gradients(dtype: torch.dtype, residual: bool, shape: tuple[int, int], device: torch.device) -> None:
    torch.manual_seed(0)
    inputs = [data(dtype, device, *shape), data(dtype, device, shape[1])]
    upstream = [data(torch.float32, device, *shape)]
    if residual:
        inputs.append(data(dtype, device, *shape))
        upstream.append(data(torch.float32, device, *shape))
    check_op(ours, rms_norm_eager, inputs, upstream)


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(0, 3), tokens=st.integers(1, 9), D=st.integers(1, 80), wide=st.booleans(),
    programs=st.integers(1, 5),
)  # fmt: skip
def test_any_shape(device: torch.device, batch: int, tokens: int, D: int, wide: bool, programs: int) -> None:
    """Empty batches, odd widths, any number of partials; an fp32 residual stream under bf16 activations."""
    torch.manual_seed(1)
    x, weight = data(torch.bfloat16, device, batch, tokens, D), data(torch.float32, device, D)
    residual = data(torch.float32 if wide else torch.bfloat16, device, batch, tokens, D)
    upstream = [data(torch.float32, device, batch, tokens, D) for _ in range(2)]
    # D = 1 makes the norm a sign: its gradient is the rounding error of a zero
    inputs = [x, weight, residual] if D > 1 else [x + 1, weight, residual + 1]
    with forced("rms_norm", "backward", {"ROWS": 2, "PROGRAMS": programs, "num_warps": 4}):
        check_op(ours, rms_norm_eager, inputs, upstream)


def test_strided_rows_are_read_in_place(device: torch.device) -> None:
    x = data(torch.float32, device, 6, 3, 32)[:, 1]
    weight = data(torch.float32, device, 32)
    torch.testing.assert_close(ours(x, weight), rms_norm_eager(x, weight))
    turned = data(torch.float32, device, 32, 6).t()
    torch.testing.assert_close(ours(turned, weight), rms_norm_eager(turned, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_is_that_of_the_stored_sum(dtype: torch.dtype, device: torch.device) -> None:
    """Otherwise forward and backward would disagree about h by a rounding."""
    x, residual = data(dtype, device, 16, 64), data(dtype, device, 16, 64)
    weight = data(dtype, device, 64)
    y, h = ours(x, weight, residual)
    assert torch.equal(h, (x.float() + residual.float()).to(dtype))
    again = ours(h, weight)
    assert isinstance(again, Tensor)
    assert torch.equal(y, again)


def test_gradcheck() -> None:
    x, residual = (torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    if torch.cuda.is_available():
        pytest.skip("the fp64 path is for the interpreter")
    assert torch.autograd.gradcheck(ours, (x, weight, residual), fast_mode=True)
    assert torch.autograd.gradcheck(ours, (x, weight), fast_mode=True)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_gradcheck_of_the_reference(shape: tuple[int, ...]) -> None:
    x, residual, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, shape, (8,)))
    assert torch.autograd.gradcheck(rms_norm_eager, (x, weight, residual))
    assert torch.autograd.gradcheck(rms_norm_eager, (x, weight))
    assert torch.autograd.gradcheck(rms_norm_eager, (x, weight.detach()))
    assert torch.autograd.gradcheck(rms_norm_eager, (x.detach(), weight))


def test_the_reference_has_torchs_bits_and_keeps_the_rows_and_a_number_a_row() -> None:
    x, weight = (torch.randn(s, requires_grad=True) for s in ((40, 96), (96,)))
    kept = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = rms_norm_eager(x, weight, eps=1e-6)
    assert isinstance(y, Tensor)
    assert sorted(kept.values()) == [40, 96, 40 * 96]
    with torch.no_grad():
        again = rms_norm_eager(x, weight, eps=1e-6)
        assert isinstance(again, Tensor)
        assert torch.equal(y, again)
        assert torch.equal(y, torch.nn.functional.rms_norm(x, (96,), weight, 1e-6))


def test_registration(device: torch.device) -> None:
    x, residual, weight = (data(torch.float32, device, *s).requires_grad_() for s in ((5, 8), (5, 8), (8,)))
    torch.library.opcheck(torch.ops.fmscale.rms_norm.default, (x, residual, weight, 1e-6))
    torch.library.opcheck(torch.ops.fmscale.rms_norm.default, (x, None, weight, 1e-6))


def test_compiles_whole(device: torch.device) -> None:
    x, residual, weight = (data(torch.float32, device, *s).requires_grad_() for s in ((5, 8), (5, 8), (8,)))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(x, weight, residual), ours(x, weight, residual), strict=True):
        assert torch.equal(got, wanted)
        grads = [torch.autograd.grad(t.sum(), (x, weight), retain_graph=True) for t in (got, wanted)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_errors_name_what_to_do(device: torch.device) -> None:
    x = data(torch.float32, device, 2, 8)
    with pytest.raises(KernelError, match="The order is"):
        rms_norm(x, x)
    wide = torch.ones(1, 20000, device=device)
    with pytest.raises(KernelError, match=r'backend "triton".*at most 16384.*eager'):
        rms_norm(wide, wide[0], backend="triton")
    torch.testing.assert_close(rms_norm(wide, wide[0]), wide)  # auto finds the backend that can


@pytest.mark.gpu
@pytest.mark.parametrize("D", [128, 1024, 4096, 8192, 16384])
def test_real_sizes(D: int, device: torch.device) -> None:
    rows = 2**22 // D
    inputs = [data(torch.bfloat16, device, rows, D), data(torch.bfloat16, device, D)]
    check_op(ours, rms_norm_eager, inputs, [data(torch.float32, device, rows, D)])


@pytest.mark.gpu
def test_weight_gradient_repeats_bit_for_bit(device: torch.device) -> None:
    x, dy = (data(torch.bfloat16, device, 4096, 4096) for _ in range(2))
    weight = data(torch.bfloat16, device, 4096).requires_grad_()
    first = torch.autograd.grad(ours(x, weight), weight, dy)[0]
    for _ in range(1000):
        assert torch.equal(torch.autograd.grad(ours(x, weight), weight, dy)[0], first)
