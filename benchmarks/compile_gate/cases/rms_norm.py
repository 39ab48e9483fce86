"""Compile cases of the norm."""

import torch
from fmscale.kernels.launch import tl_dtype
from fmscale.kernels.rms_norm import WIDEST, _backward_kernel, _forward_kernel, _reduce_kernel, configs

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Every launch configuration, at the widths of heads (q/k-norm) and of models."""
    cases = []
    forward = dict.fromkeys(("X", "R", "W", "Y", "H"), "*bf16") | {"RSTD": "*fp32", "eps": "fp32"}
    forward |= dict.fromkeys(("rows", "D", "stride_x", "stride_r"), "i32")
    backward = dict.fromkeys(("DY", "DH", "H", "W", "DX"), "*bf16") | {"RSTD": "*fp32", "PARTIAL": "*fp32"}
    backward |= dict.fromkeys(("rows", "D", "stride_dy", "stride_dh", "stride_h"), "i32")
    for D in (128, 1024, 4096, 8192, WIDEST):
        common = {"ACC": tl_dtype(torch.float32), "BLOCK": D}
        for name, kernel, signature, word, flag in (
            ("forward", _forward_kernel, forward, "residual", "RESIDUAL"),
            ("backward", _backward_kernel, backward, "upstream", "UPSTREAM_H"),
        ):
            cases += [
                CompileCase(
                    name=f"rms_norm.{name} bf16 D{D} {word}={present} {dict(c)}",
                    kernel=kernel,
                    signature=signature,
                    constants=common | {flag: present, "ROWS": c["ROWS"]},
                    num_warps=c["num_warps"],
                )
                for c in configs(D)[name]
                for present in (False, True)
            ]
    cases.append(
        CompileCase(
            name="rms_norm.reduce fp32",
            kernel=_reduce_kernel,
            signature={"PARTIAL": "*fp32", "DW": "*bf16", "programs": "i32", "D": "i32"},
            constants={"ACC": tl_dtype(torch.float32), "ROWS": 32, "BLOCK": 128},
        )
    )
    return cases
