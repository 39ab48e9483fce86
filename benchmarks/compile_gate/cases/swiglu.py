"""Compile cases of the gated activation."""

import torch
from fmscale.kernels.launch import tl_dtype
from fmscale.kernels.swiglu import _backward_kernel, _forward_kernel, configs

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Every launch configuration in bf16."""
    cases = []
    for kernel, name, pointers in (
        (_forward_kernel, "forward", ("GATE", "UP", "Y")),
        (_backward_kernel, "backward", ("DY", "GATE", "UP", "DGATE", "DUP")),
    ):
        sizes = ("F", "stride_gate", "stride_up") + (("stride_dy",) if name == "backward" else ())
        for c in configs()[name]:
            cases.append(
                CompileCase(
                    name=f"swiglu.{name} bf16 {dict(c)}",
                    kernel=kernel,
                    signature=dict.fromkeys(pointers, "*bf16") | dict.fromkeys(sizes, "i32"),
                    constants={"ACC": tl_dtype(torch.float32), "BLOCK": c["BLOCK"]},
                    num_warps=c["num_warps"],
                )
            )
    return cases
