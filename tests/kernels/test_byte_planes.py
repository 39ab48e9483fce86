import pytest
import torch
from fmscale.kernels.byte_planes import merge_byte_planes, split_byte_planes
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import KernelError

DTYPES = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
]  # fmt: skip
BACKENDS = ["triton", "eager"]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def random_bits(dtype: torch.dtype, n: int, device: torch.device) -> torch.Tensor:
    """Every bit pattern: infinities, NaNs with payloads, negative zeros, subnormals."""
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, high, (n * dtype.itemsize,), dtype=torch.uint8, device=device)
    return raw.view(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bit_for_bit(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    x = random_bits(dtype, 3 * 1111, device).view(3, 1111)
    planes = split_byte_planes(x, backend=backend)
    assert planes.dtype == torch.uint8
    assert planes.shape == (dtype.itemsize, 3333)
    back = merge_byte_planes(planes, dtype, x.shape, backend=backend)
    assert back.dtype == dtype
    assert back.shape == x.shape
    assert torch.equal(bits(back), bits(x))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(dtype=st.sampled_from(DTYPES), n=st.integers(0, 5000))
def test_row_k_holds_byte_k(device: torch.device, backend: str, dtype: torch.dtype, n: int) -> None:
    x = random_bits(dtype, n, device)
    planes = split_byte_planes(x, backend=backend)
    for k in range(dtype.itemsize):
        assert torch.equal(planes[k], bits(x)[k :: dtype.itemsize])
    assert torch.equal(bits(merge_byte_planes(planes, dtype, (n,), backend=backend)), bits(x))


def test_a_view_is_taken_in_logical_order(device: torch.device) -> None:
    x = torch.randn(20, 30, device=device)
    assert torch.equal(split_byte_planes(x.t(), backend="triton"), split_byte_planes(x.t().contiguous()))


def test_registration(device: torch.device) -> None:
    x = torch.arange(9, dtype=torch.int16, device=device)
    torch.library.opcheck(torch.ops.fmscale.split_byte_planes.default, (x,))
    planes = split_byte_planes(x)
    torch.library.opcheck(torch.ops.fmscale.merge_byte_planes.default, (planes, torch.int16))


def test_compiles_whole(device: torch.device) -> None:
    x = torch.randn(3, 5, device=device)

    def both(x: torch.Tensor) -> torch.Tensor:
        return merge_byte_planes(split_byte_planes(x, backend="triton"), x.dtype, x.shape, backend="triton")

    assert torch.equal(torch.compile(both, fullgraph=True, backend="aot_eager")(x), x)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    with pytest.raises(KernelError, match="view_as_real"):
        split_byte_planes(torch.ones(2, dtype=torch.complex64, device=device))
    with pytest.raises(KernelError, match="dtype and shape that were split"):
        merge_byte_planes(torch.zeros(2, 5, dtype=torch.uint8, device=device), torch.float32, (5,))


@pytest.mark.gpu
def test_beyond_31_bits(device: torch.device) -> None:
    x = torch.randint(-(2**15), 2**15, (2**30 + 33,), dtype=torch.int16, device=device)
    planes = split_byte_planes(x, backend="triton")
    assert torch.equal(merge_byte_planes(planes, x.dtype, x.shape, backend="triton"), x)
