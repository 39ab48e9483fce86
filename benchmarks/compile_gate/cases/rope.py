"""Compile cases of rotary positions."""

import torch
from fmscale.kernels.launch import tl_dtype
from fmscale.kernels.rope import _norm_backward_kernel, _rope_kernel, configs

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Every launch configuration at head dims 64, 128 and 256, plain and with the norm."""
    sizes = ["q_heads", "k_heads", "half", "q_token", "q_head", "k_token", "k_head"]
    weights = {"QW": "*bf16", "KW": "*bf16", "POSITIONS": "*i32", "TURNS": "*fp64", "eps": "fp32"}
    strides = ["tokens", *sizes, "dq_token", "dq_head", "dk_token", "dk_head"]
    cases = []
    for half in (32, 64, 128):
        common = {"INTERLEAVED": False, "ACC": tl_dtype(torch.float32), "HALF": half}
        cases += [
            CompileCase(
                name=f"rope.forward bf16 E{2 * half} norm={norm} {dict(c)}",
                kernel=_rope_kernel,
                signature=dict.fromkeys(("Q", "K", "QY", "KY"), "*bf16") | weights | dict.fromkeys(sizes, "i32"),
                constants=common | {"INVERSE": False, "NORM": norm, "HEADS": c["HEADS"]},
                num_warps=c["num_warps"],
            )
            for c in configs()["forward"]
            for norm in (False, True)
        ]
        pointers = dict.fromkeys(("DQY", "DKY", "Q", "K", "DQ", "DK"), "*bf16") | {"PARTIAL": "*fp32"}
        cases += [
            CompileCase(
                name=f"rope.norm_backward bf16 E{2 * half} {dict(c)}",
                kernel=_norm_backward_kernel,
                signature=pointers | weights | dict.fromkeys(strides, "i32"),
                constants=common | {"HEADS": c["HEADS"]},
                num_warps=c["num_warps"],
            )
            for c in configs()["norm_backward"]
        ]
    return cases
