"""A shipped configuration of a kernel, as input of the compile gate.

Each module of `cases` has `compile_cases() -> list[CompileCase]`. `python -m benchmarks.compile_gate.gate` compiles
them for sm_90 without a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One kernel at one configuration."""

    name: str
    """Unique; "op.kernel" first, then the case's properties: "attention.forward bf16 E128 causal 128x64"."""
    kernel: Any
    """The `@jit` function."""
    signature: Mapping[str, str]
    """Triton type of every parameter that is not constexpr: "*bf16", "*fp32", "*i64", "i32", "fp32"."""
    constants: Mapping[str, object]
    """Value of every constexpr parameter; a Triton dtype (`tl.float32`) is a value like any other."""
    unaligned: frozenset[str] = field(default_factory=frozenset)
    """Pointers and integers that may not be divisible by 16 at a launch; all others count as divisible."""
    num_warps: int = 4
    """Warps per program."""
    num_stages: int = 3
    """Depth of the software pipeline."""
    must_have_wgmma: bool = False
    """Fail when the matrix products do not become Hopper's warpgroup instructions."""
