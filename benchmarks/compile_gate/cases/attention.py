"""Compile cases of the attention kernels: every shipped configuration and mask."""

from collections.abc import Iterator
from typing import Any

import torch
from fmscale.kernels.attention.backward import delta_kernel, dkdv_kernel, dq_kernel
from fmscale.kernels.attention.configs import configs
from fmscale.kernels.attention.device import block_e, precision
from fmscale.kernels.attention.forward import forward_kernel
from fmscale.kernels.attention.tiles import COUNT, slots_kernel
from fmscale.kernels.launch import tl_dtype

from benchmarks.compile_gate.case import CompileCase

KERNELS = {"forward": forward_kernel, "dkdv": dkdv_kernel, "dq": dq_kernel}
COUNTS = ("T", "S", "heads", "documents", "tiles", "section", "window")
# The masks of real models and their features. Dense and packed kernels differ in one load per program.
MASKS: dict[str, frozenset[str]] = {
    "documents causal": frozenset({"documents", "causal"}),
    "causal": frozenset({"causal"}),
    "full": frozenset(),
    "documents causal window sinks": frozenset({"documents", "causal", "window", "sinks"}),
    "documents causal softcap": frozenset({"documents", "causal", "softcap"}),
    "everything": frozenset({"documents", "causal", "window", "softcap", "sinks"}),
    "documents window softcap": frozenset({"documents", "window", "softcap"}),
}
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _case(kernel: str, dtype: torch.dtype, E: int, mask: str, launch: dict[str, int]) -> CompileCase:
    features = MASKS[mask]
    typed = f"*{SHORT[dtype]}"
    inputs, levels = ("Q", "K", "V"), dict.fromkeys(("LEVEL", "REST"), "*fp32")
    signature = {
        "forward": dict.fromkeys((*inputs, "SINKS", "OUT"), typed) | {"LSE": "*fp32"} | levels,
        "dkdv": dict.fromkeys((*inputs, "DOUT", "DK", "DV"), typed) | {"DELTA": "*fp32"} | levels,
        "dq": dict.fromkeys((*inputs, "DOUT", "DQ"), typed) | {"DELTA": "*fp32"} | levels,
    }[kernel]
    constants: dict[str, Any] = {
        "E": E, "H": 32, "GROUP": 4, "CAUSAL": "causal" in features, "WINDOW": "window" in features,
        "SOFTCAP": "softcap" in features, "ACC": tl_dtype(torch.float32), "PRECISION": precision(dtype, E),
        "BLOCK_M": launch["BLOCK_M"], "BLOCK_N": launch["BLOCK_N"], "BLOCK_E": block_e(E),
    }  # fmt: skip
    if kernel == "forward" and "sinks" not in features:
        del signature["SINKS"]
        constants["SINKS"] = None
    if dtype.itemsize == 2:  # only fp32 has the level in two parts
        for absent in {"forward": ("LEVEL", "REST")}.get(kernel, ("REST",)):
            del signature[absent]
            constants[absent] = None
    offsets = "*i64" if mask == "everything" else "*i32"
    for name, kind in {"CU_Q": offsets, "CU_K": offsets, "TILES": "*i64"}.items():
        if "documents" in features:
            signature[name] = kind
        else:
            constants[name] = None
    tensors = "qkv" if kernel == "forward" else "qkvo"
    signature |= {f"stride_{tensor}{axis}": "i32" for tensor in tensors for axis in "bh"}
    constants |= {f"stride_{tensor}t": (8 if tensor in "kv" else 32) * E for tensor in tensors}
    signature |= dict.fromkeys(COUNTS, "i32") | {"scale": "fp32", "softcap": "fp32"}
    shape = "x".join(str(launch[size]) for size in ("BLOCK_M", "BLOCK_N"))
    pipeline = f"w{launch['num_warps']} s{launch['num_stages']}"
    return CompileCase(
        name=f"attention.{kernel} {SHORT[dtype]} E{E} {mask} {shape} {pipeline}",
        kernel=KERNELS[kernel],
        signature=signature,
        constants=constants,
        unaligned=frozenset({*COUNTS, "scale", "softcap"}),
        num_warps=launch["num_warps"],
        num_stages=launch["num_stages"],
        must_have_wgmma=dtype.itemsize == 2,
    )


def _small() -> Iterator[CompileCase]:
    for keys in (False, True):
        yield CompileCase(
            name=f"attention.slots {'keys' if keys else 'queries'}",
            kernel=slots_kernel,
            signature=dict.fromkeys(("CU", "CU_OTHER"), "*i64" if keys else "*i32")
            | {"SLOTS": "*i64"}
            | dict.fromkeys(("documents", "total", "total_other", "slots", "steps", "window"), "i32"),
            constants={"KEYS": keys, "CAUSAL": True, "WINDOW": True, "BLOCK": 128, "COUNT": COUNT},
            unaligned=frozenset({"documents", "total", "total_other", "slots", "steps", "window"}),
        )
    for short in SHORT.values():
        for E in (64, 128, 256):
            yield CompileCase(
                name=f"attention.delta {short} E{E}",
                kernel=delta_kernel,
                signature={
                    "OUT": f"*{short}", "DOUT": f"*{short}", "LSE": "*fp32", "DLSE": "*fp32",
                    "SINKS": f"*{short}", "DELTA": "*fp32", "LEVEL": "*fp32",
                    **({"REST": "*fp32"} if short == "fp32" else {}), "DSINKS": "*fp32", "stride_b": "i32",
                    "stride_t": "i32", "stride_h": "i32", "T": "i32", "blocks": "i32",
                },
                constants={
                    "E": E, "H": 32, "ACC": tl_dtype(torch.float32), "BLOCK_M": 64, "BLOCK_E": block_e(E),
                    **({} if short == "fp32" else {"REST": None}),
                },
                unaligned=frozenset({"T", "blocks"}),
            )  # fmt: skip


def compile_cases() -> list[CompileCase]:
    """bf16 with every mask and head dim; fp16, fp32 and padded head dims with the lightest and the heaviest mask."""
    cases = list(_small())
    ends = ("documents causal", "everything")
    sizes = [(torch.bfloat16, E, tuple(MASKS)) for E in (64, 128, 256)]
    sizes += [(torch.bfloat16, E, ends) for E in (32, 80, 96, 192)]
    sizes += [(dtype, E, ends) for dtype in (torch.float16, torch.float32) for E in (64, 96, 128, 192, 256)]
    for dtype, E, masks in sizes:
        for mask in masks:
            heavy = bool(MASKS[mask] & {"window", "softcap"}) or block_e(E) != E
            for kernel, table in configs(dtype, block_e(E), heavy=heavy).items():
                cases += [_case(kernel, dtype, E, mask, dict(launch)) for launch in table]
    return cases
