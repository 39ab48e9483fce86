"""Compile cases of decoding."""

import torch
from fmscale.kernels.attention.decode import SPANS, configs, join_kernel, most_rows, span_kernel
from fmscale.kernels.attention.device import block_e, precision
from fmscale.kernels.launch import tl_dtype

from benchmarks.compile_gate.case import CompileCase


def compile_cases() -> list[CompileCase]:
    """Tiles of 16 rows (one token, up to 16 heads a group) and of more rows; plain, and with window and soft-cap."""
    cases = []
    for dtype, short in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        for E in (64, 128, 256):
            for rows in sorted({16, most_rows(dtype, block_e(E))}):
                for everything in (False, True):
                    for launch in configs(dtype, block_e(E))["span"]:
                        cases.append(_span_case(dtype, short, E, rows, everything, dict(launch)))
            cases.append(
                CompileCase(
                    name=f"attention_decode.join {short} E{E}",
                    kernel=join_kernel,
                    signature={
                        "PARTS": "*fp32", "LEVELS": "*fp32", "SINKS": f"*{short}", "OUT": f"*{short}",
                        "LSE": "*fp32", "spans": "i32",
                    },
                    constants={
                        "E": E, "H": 32, "ACC": tl_dtype(torch.float32), "BLOCK_S": SPANS, "BLOCK_E": block_e(E)
                    },
                    unaligned=frozenset({"spans"}),
                )
            )  # fmt: skip
    return cases


def _span_case(
    dtype: torch.dtype, short: str, E: int, rows: int, everything: bool, launch: dict[str, int]
) -> CompileCase:
    counts = ("T", "S", "span", "spans", "window")
    signature = dict.fromkeys("QKV", f"*{short}")
    signature |= {"LENGTHS": "*i32", "PARTS": "*fp32", "LEVELS": "*fp32", "scale": "fp32", "softcap": "fp32"}
    signature |= {f"stride_{tensor}{axis}": "i32" for tensor in "qkv" for axis in "bh"}
    signature |= dict.fromkeys(counts, "i32")
    return CompileCase(
        name=f"attention_decode.span {short} E{E} {rows} rows{' everything' * everything} "
        f"{launch['BLOCK_N']} w{launch['num_warps']} s{launch['num_stages']}",
        kernel=span_kernel,
        signature=signature,
        constants={
            "E": E, "H": 32, "GROUP": 4, "WINDOW": everything, "SOFTCAP": everything,
            "ACC": tl_dtype(torch.float32), "PRECISION": precision(dtype, E), "BLOCK_M": rows,
            "BLOCK_N": launch["BLOCK_N"], "BLOCK_E": block_e(E),
            **{f"stride_{tensor}t": (8 if tensor in "kv" else 32) * E for tensor in "qkv"},
        },
        unaligned=frozenset({*counts, "scale", "softcap"}),
        num_warps=launch["num_warps"],
        num_stages=launch["num_stages"],
        # wgmma needs 64 rows; with fewer rows the products wait for the cache in any case
    )  # fmt: skip
