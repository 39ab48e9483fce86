"""Launch configurations of the attention kernels, and the cases that the compile gate checks."""

from collections.abc import Mapping

import torch
from fmscale.kernels.dispatch import Config

Tables = Mapping[str, tuple[Config, ...]]


def _c(m: int, n: int, warps: int, stages: int) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


def configs(dtype: torch.dtype, width: int) -> Tables:
    """Per kernel what may be chosen for a padded head dim `width`; the first is the default."""
    if dtype.itemsize > 2:
        return {
            "forward": (_c(64, 32, 4, 2),), "dkdv": (_c(32, 32, 4, 2),), "dq": (_c(32, 32, 4, 2),),
        }  # fmt: skip
    if width <= 64:
        return {
            "forward": (_c(128, 64, 8, 3), _c(128, 128, 8, 2)),
            "dkdv": (_c(64, 128, 8, 2),),
            "dq": (_c(128, 64, 8, 2),),
        }
    if width <= 128:
        return {
            "forward": (_c(128, 64, 8, 3), _c(128, 128, 8, 2)),
            "dkdv": (_c(64, 128, 8, 2),),
            "dq": (_c(128, 64, 8, 2),),
        }
    return {"forward": (_c(128, 64, 8, 2),), "dkdv": (_c(32, 64, 8, 2),), "dq": (_c(64, 32, 4, 2),)}
