"""Compile cases of byte planes."""

from fmscale.kernels.byte_planes import _merge_kernel, _split_kernel, configs

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Every launch configuration for elements of 2 and 4 bytes."""
    return [
        CompileCase(
            name=f"byte_planes.{name} {integer} {dict(c)}",
            kernel=kernel,
            signature={"X": f"*{integer}", "PLANES": "*u8", "n": "i32"},
            constants={"BYTES": size, "BLOCK": c["BLOCK"]},
            num_warps=c["num_warps"],
        )
        for kernel, name in ((_split_kernel, "split"), (_merge_kernel, "merge"))
        for integer, size in (("i16", 2), ("i32", 4))
        for c in configs()[name]
    ]
