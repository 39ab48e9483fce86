"""Operands of a matrix product as tensor cores take them, for the interpreter, which would not round them."""

import numpy as np


def to_tf32(x: np.ndarray) -> np.ndarray:
    """fp32 numbers rounded to TF32, ten bits after the point: to the nearest, ties away from zero, as `cvt.rna`."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(x.dtype)


def pairs(left: np.ndarray, right: np.ndarray, precision: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is multiplied and added up for operands of fp32: "ieee" themselves, "tf32" rounded, "tf32x3" in parts.

    The arrays may be wider than fp32, so that products are exact.
    """
    if precision == "ieee":
        return [(left, right)]
    high = [to_tf32(one) for one in (left, right)]
    if precision == "tf32":
        return [(high[0], high[1])]
    assert precision == "tf32x3", precision
    with np.errstate(invalid="ignore"):  # inf - inf
        low = [to_tf32(np.where(np.isfinite(x), x - h, 0)) for x, h in zip((left, right), high, strict=True)]
    return [(low[0], high[1]), (high[0], low[1]), (high[0], high[1])]
