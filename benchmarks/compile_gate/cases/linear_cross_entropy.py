"""Compile cases of the loss."""

import torch
from fmscale.kernels.launch import tl_dtype
from fmscale.kernels.linear_cross_entropy import _cross_entropy_kernel, configs

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Every launch configuration, with and without the gradient, in bf16 and fp32."""
    return [
        CompileCase(
            name=f"linear_cross_entropy.cross_entropy {logits[1:]} gradient={gradient} {dict(c)}",
            kernel=_cross_entropy_kernel,
            signature={"LOGITS": logits, "LABELS": "*i64", "WEIGHTS": "*fp32", "LOSS": "*fp32", "V": "i32"}
            | {"ignore_index": "i32", "z_loss": "fp32"},
            constants={"WEIGHTED": True, "GRADIENT": gradient, "ACC": tl_dtype(torch.float32)} | {"BLOCK": c["BLOCK"]},
            unaligned=frozenset({"ignore_index"}),
            num_warps=c["num_warps"],
        )
        for logits in ("*bf16", "*fp32")
        for gradient in (True, False)
        for c in configs()["cross_entropy"]
    ]
