"""Needs of every kernel's launch: Triton or its absence, dtypes, devices, rows.

This module imports without Triton and without a GPU, as the eager backends need neither of them.
"""

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

HAVE_TRITON = importlib.util.find_spec("triton") is not None
if HAVE_TRITON:
    import triton

    tl = triton.language
    TRITON_VERSION = str(triton.__version__)
    INTERPRETED = bool(triton.knobs.runtime.interpret)
else:

    class _Absent:
        """Stands for `triton.language` in kernel signatures where triton is not installed."""

        constexpr = object

    tl = _Absent
    TRITON_VERSION = "absent"
    INTERPRETED = False


class Kernel(Protocol):
    """A Triton kernel: `kernel[grid](arguments)` launches it; another kernel calls it as a function."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...

    def __call__(self, *arguments: Any) -> Any: ...


def jit(kernel: Callable[..., None]) -> Kernel:
    """`triton.jit(kernel)`; without triton, which a launch needs, the function itself."""
    return cast(Kernel, triton.jit(kernel) if HAVE_TRITON else kernel)


def triton_refusal(device: torch.device) -> str | None:
    """Reason why no Triton kernel can run on `device`, or None."""
    if not HAVE_TRITON:
        return "triton is not installed"
    if device.type != "cuda" and not INTERPRETED:
        return f"Triton kernels do not run on {device.type} (only under TRITON_INTERPRET=1, for tests)"
    return None


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make `device` current for a launch: Triton launches on the current CUDA device, wherever its arguments are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a kernel computes in: fp64 for fp64 (so that gradcheck can run), else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tl_dtype(dtype: torch.dtype) -> Any:
    """The Triton dtype of `dtype`, to be passed as a constexpr."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def round_up(size: int) -> int:
    """The next power of two at or above `size`."""
    return 1 << max(0, size - 1).bit_length()


def rows(t: Tensor) -> Tensor:
    """`t` (..., D) as (rows, D) with unit stride in D: a view where possible, else a copy."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(-1) == 1 else t.contiguous()
