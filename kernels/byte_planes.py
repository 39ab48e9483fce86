"""Byte planes: plane k holds the k-th byte of every element. Lossless, for compressing checkpoints.

The high bytes of trained weights (sign and exponent) repeat, the low bytes do not: an entropy coder gains only where
they are apart. Source of the idea: Hershcovitch et al., "ZipNN: Lossless Compression for AI Models", arXiv 2411.05239;
the bitshuffle and byte-shuffle filters of HDF5 do the same.
"""

import torch
from fmscale.kernels.dispatch import Config, choose, launch_config
from fmscale.kernels.launch import jit, on, tl, triton_refusal
from torch import Tensor

from fmscale.errors import KernelError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@jit
def _split_kernel(X, PLANES, n, BYTES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + at, mask=at < n, other=0)
    plane = PLANES + at
    for k in tl.static_range(BYTES):
        tl.store(plane, ((x >> (8 * k)) & 255).to(tl.uint8), mask=at < n)
        plane += n  # k * n would overflow 32 bits


@jit
def _merge_kernel(PLANES, X, n, BYTES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.zeros((BLOCK,), dtype=X.dtype.element_ty)
    plane = PLANES + at
    for k in tl.static_range(BYTES):
        x = x | (tl.load(plane, mask=at < n, other=0).to(X.dtype.element_ty) << (8 * k))
        plane += n
    tl.store(X + at, x, mask=at < n)


def configs() -> dict[str, tuple[Config, ...]]:
    """Launch configurations per kernel; the first is the default (16 elements a thread: 16-byte stores)."""
    sizes = ((2048, 4), (4096, 8), (1024, 4))
    choices: tuple[Config, ...] = tuple({"BLOCK": block, "num_warps": warps} for block, warps in sizes)
    return {"split": choices, "merge": choices}


@torch.library.custom_op("fmscale::split_byte_planes", mutates_args=())
def _split_op(x: Tensor) -> Tensor:
    planes = x.new_empty(x.element_size(), x.numel(), dtype=torch.uint8)
    launch = launch_config("split_byte_planes", "split", x.device, str(x.dtype), configs()["split"])
    if x.numel():
        with on(x.device):
            _split_kernel[(-(-x.numel() // launch["BLOCK"]),)](x, planes, x.numel(), BYTES=x.element_size(), **launch)
    return planes


@_split_op.register_fake
def _split_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.element_size(), x.numel(), dtype=torch.uint8)


@torch.library.custom_op("fmscale::merge_byte_planes", mutates_args=())
def _merge_op(planes: Tensor, dtype: torch.dtype) -> Tensor:
    x = planes.new_empty(planes.shape[1], dtype=dtype)
    launch = launch_config("split_byte_planes", "merge", x.device, str(dtype), configs()["merge"])
    if x.numel():
        with on(x.device):
            _merge_kernel[(-(-x.numel() // launch["BLOCK"]),)](planes, x, x.numel(), BYTES=planes.shape[0], **launch)
    return x


@_merge_op.register_fake
def _merge_fake(planes: Tensor, dtype: torch.dtype) -> Tensor:
    return planes.new_empty(planes.shape[1], dtype=dtype)


def split_byte_planes_eager(x: Tensor) -> Tensor:
    """`split_byte_planes` in plain torch: the reference, and the `eager` backend."""
    flat: Tensor = x.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).view(x.numel(), x.element_size()).t().contiguous()


def merge_byte_planes_eager(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """`merge_byte_planes` in plain torch, to a flat tensor: the reference, and the `eager` backend."""
    return planes.t().contiguous().reshape(-1).view(dtype)


def _check_size(dtype: torch.dtype) -> int:
    if dtype.itemsize not in _INTEGERS or dtype.is_complex:
        raise KernelError(
            "byte planes are made of elements of 1, 2, 4 or 8 bytes",
            found=str(dtype),
            remedy="View a complex tensor as real numbers first (torch.view_as_real).",
        )
    return dtype.itemsize


def split_byte_planes(x: Tensor, *, backend: str = "auto") -> Tensor:
    """Planes of x: row k holds byte k of every element, the least significant byte first.

    x: any shape, any real dtype of 1, 2, 4 or 8 bytes; taken in its logical (row-major) order. Returns uint8 (element
    size, number of elements). Bits are moved, never interpreted: NaN payloads and negative zeros stay
    intact. Not differentiable. Raises KernelError for complex dtypes.
    """
    size = _check_size(x.dtype)
    refusals = {"triton": triton_refusal(x.device), "eager": None}
    if choose("split_byte_planes", backend, x.device, str(_INTEGERS[size]), refusals) == "eager":
        return split_byte_planes_eager(x)
    planes: Tensor = _split_op(x.detach().contiguous().reshape(-1).view(_INTEGERS[size]))
    return planes


def merge_byte_planes(
    planes: Tensor, dtype: torch.dtype, shape: torch.Size | tuple[int, ...], *, backend: str = "auto"
) -> Tensor:
    """The tensor of `dtype` and `shape` with these `planes`, bit for bit: the inverse of `split_byte_planes`.

    planes: uint8 (element size of dtype, number of elements). Raises KernelError for planes that do not fit.
    """
    size = _check_size(dtype)
    if planes.dtype != torch.uint8 or planes.shape != (size, torch.Size(shape).numel()):
        raise KernelError(
            f"planes of {dtype} {tuple(shape)} are uint8 ({size}, {torch.Size(shape).numel()})",
            found=(str(planes.dtype), tuple(planes.shape)),
            remedy="Pass the dtype and shape that were split.",
        )
    refusals = {"triton": triton_refusal(planes.device), "eager": None}
    if choose("split_byte_planes", backend, planes.device, str(_INTEGERS[size]), refusals) == "eager":
        return merge_byte_planes_eager(planes, dtype).view(shape)
    flat: Tensor = _merge_op(planes.contiguous(), _INTEGERS[size])
    return flat.view(dtype).view(shape)
