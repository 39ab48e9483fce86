"""Launch configurations that the attention kernels may use, all free of spills on sm_90.

`benchmarks/compile_gate` checks this under Triton 3.6 and 3.7. A window splits a pass into three loops, a soft-cap
keeps a tile of scores alive longer, and a padded head dim needs a mask: with any of these a call is `heavy` and has
narrower tiles.
"""

from collections.abc import Mapping

import torch
from fmscale.kernels.attention.device import Launch, block_e
from fmscale.kernels.dispatch import Config, bucket, launch_config
from torch import Tensor

Tables = Mapping[str, tuple[Config, ...]]


def _c(m: int, n: int, warps: int, stages: int) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


def configs(dtype: torch.dtype, width: int, *, heavy: bool = True) -> Tables:
    """Configurations per kernel for a padded head dim `width`; the first is the default.

    heavy: with a window, a soft-cap or a padded head dim; calls without these may use the heavy configurations too.
    """
    if dtype.itemsize > 2:
        return _wide_numbers(width)
    if width <= 64:
        return {
            "forward": (_c(128, 64, 8, 3), _c(128, 128, 8, 2)),
            "dkdv": (_c(64, 128, 8, 2),),
            "dq": (_c(128, 64, 8, 2),),
        }
    if width <= 128:
        return {
            "forward": (_c(128, 64, 8, 3),) if heavy else (_c(128, 64, 8, 3), _c(128, 128, 8, 2)),
            "dkdv": (_c(32, 128, 8, 2),) if heavy else (_c(64, 128, 8, 2), _c(32, 128, 8, 2)),
            "dq": (_c(128, 32, 8, 2),) if heavy else (_c(128, 64, 8, 2), _c(128, 32, 8, 2)),
        }
    return {
        "forward": (_c(64, 32, 8, 2),),
        "dkdv": (_c(16, 64, 8, 3),) if heavy else (_c(32, 64, 8, 2), _c(16, 64, 8, 3)),
        "dq": (_c(128, 16, 8, 2),),
    }


def _wide_numbers(width: int) -> Tables:
    """Configurations for fp32: a product is three TF32 products up to width 128, plain fp32 above; see `precision`."""
    if width <= 64:
        return {"forward": (_c(64, 32, 4, 2),), "dkdv": (_c(32, 32, 8, 2),), "dq": (_c(32, 32, 8, 2),)}
    if width <= 128:
        return {"forward": (_c(16, 32, 8, 2),), "dkdv": (_c(16, 16, 8, 1),), "dq": (_c(16, 16, 8, 2),)}
    return {"forward": (_c(16, 16, 8, 2),), "dkdv": (_c(16, 32, 8, 2),), "dq": (_c(32, 16, 8, 2),)}


def case(
    dtype: torch.dtype, E: int, *, documents: bool, causal: bool, window: bool, softcap: bool, sinks: bool,
) -> str:  # fmt: skip
    """The bucket of a call in the tuning tables: "bfloat16 E128 documents causal".

    The head dim is exact: a padded head dim has other tiles than the power of two above it.
    """
    flags = {"documents": documents, "causal": causal, "window": window, "softcap": softcap, "sinks": sinks}
    return " ".join([bucket(dtype), f"E{E}", *(name for name, on in flags.items() if on)])


def chosen(
    kernel: str, q: Tensor, cu: Tensor | None, sinks: Tensor | None, *, causal: bool, window: int, softcap: float,
) -> Launch:  # fmt: skip
    """The configuration of a kernel for a call: forced, measured, or the default."""
    E = q.shape[3]
    width = block_e(E)
    choices = configs(q.dtype, width, heavy=window > 0 or softcap > 0 or width != E)[kernel]
    name = case(
        q.dtype, E, documents=cu is not None, causal=causal, window=window > 0, softcap=softcap > 0,
        sinks=sinks is not None,
    )  # fmt: skip
    return dict(launch_config("attention", kernel, q.device, name, choices))
