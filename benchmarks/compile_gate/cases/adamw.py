"""Compile cases of AdamW."""

from fmscale.kernels.adamw import _adamw_kernel, configs

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Every launch configuration, with copy, loss scale, gradient norm and clipping."""
    states = dict.fromkeys(("MASTER", "FIRST", "SECOND", "SCALE", "NORM"), "*fp32")
    scalars = ["keep", "step_size", "beta1", "rest1", "beta2", "rest2", "correction2", "eps", "max_norm"]
    return [
        CompileCase(
            name=f"adamw.step {grad[1:]} {dict(c)}",
            kernel=_adamw_kernel,
            signature=states | {"GRAD": grad, "COPY": "*bf16", "n": "i32"} | dict.fromkeys(scalars, "fp32"),
            constants=dict.fromkeys(("HAS_COPY", "HAS_SCALE", "HAS_NORM", "CLIP"), True) | {"BLOCK": c["BLOCK"]},
            num_warps=c["num_warps"],
        )
        for grad in ("*bf16", "*fp32")
        for c in configs()["step"]
    ]
