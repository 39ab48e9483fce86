"""Needs of every kernel's launch: Triton or its absence, dtypes, devices, rows.

This module imports without Triton and without a GPU, as the eager backends need neither of them. Triton is imported at
the first launch: the import takes 0.15 s and 67 MB, which a process on a CPU would never use.
"""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

_ORIGIN = getattr(importlib.util.find_spec("triton"), "origin", None)
HAVE_TRITON = _ORIGIN is not None
TRITON_VERSION = "absent"
INTERPRETED = False
INTERPRETED_BF16 = False
"""True where something corrects Triton's interpreter in bf16, as the kernels' tests do: without it a bf16 is its bit
pattern, and a run trains on products of these numbers, with a loss that looks right and gradient norms of 1e14."""
if _ORIGIN is not None:
    _versions = re.findall(r"^__version__ = ['\"](.+)['\"]$", Path(_ORIGIN).read_text(), re.MULTILINE)
    TRITON_VERSION = _versions[0] if _versions else "unknown"  # for which no table of launches is kept
    if "TRITON_INTERPRET" in os.environ:
        import triton

        INTERPRETED = bool(triton.knobs.runtime.interpret)
    if INTERPRETED:
        from triton.runtime import interpreter

        INTERPRETED_BF16 = interpreter.InterpreterBuilder.cast_impl.__module__ != interpreter.__name__

if TYPE_CHECKING:
    import triton

    tl = triton.language
else:

    class tl:  # noqa: N801
        """Stands for `triton.language` in the kernels' modules until the first launch."""

        class constexpr:  # noqa: N801
            """Triton knows an annotation by its name."""


class Kernel:
    """A Triton kernel: `kernel[grid](arguments)` launches it; another kernel calls it as a function."""

    def __init__(self, function: Callable[..., None], **options: Any) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.options = options

    @functools.cached_property
    def made(self) -> Any:
        """`triton.jit` of the function, with `tl` and the kernels that it calls made in its module's names."""
        import triton

        names = self.function.__globals__
        names["tl"] = triton.language
        for name in self.function.__code__.co_names:
            if isinstance(names.get(name), Kernel):
                names[name] = names[name].made
        return triton.jit(self.function, **self.options)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        launch: Callable[..., object] = self.made[grid]
        return launch

    def __call__(self, *arguments: Any) -> Any:
        """Call the kernel from another kernel, under Triton."""
        return self.made(*arguments)


jit = Kernel


def triton_refusal(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Reason why no Triton kernel can compute with numbers of these dtypes on `device`, or None."""
    if not HAVE_TRITON:
        return "triton is not installed"
    if device.type != "cuda" and not INTERPRETED:
        return f"Triton kernels do not run on {device.type} (only under TRITON_INTERPRET=1, for tests)"
    if INTERPRETED and torch.bfloat16 in dtypes and not INTERPRETED_BF16:
        return "bfloat16: under TRITON_INTERPRET=1 its products are garbage"
    return None


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make `device` current for a launch: Triton launches on the current CUDA device, wherever its arguments are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a kernel computes in: fp64 for fp64 (so that gradcheck can run), else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tl_dtype(dtype: torch.dtype) -> Any:
    """The Triton dtype of `dtype`, to be passed as a constexpr."""
    import triton

    return getattr(triton.language, str(dtype).removeprefix("torch."))


def round_up(size: int) -> int:
    """The next power of two at or above `size`."""
    return 1 << max(0, size - 1).bit_length()


def rows(t: Tensor) -> Tensor:
    """`t` (..., D) as (rows, D) with unit stride in D: a view where possible, else a copy."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(-1) == 1 else t.contiguous()
