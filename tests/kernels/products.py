"""Operands of a matrix product, rounded as in tensor cores, for the interpreter, which does not round them."""

import numpy as np


def to_tf32(x: np.ndarray) -> np.ndarray:
    """fp32 numbers rounded to TF32, ten bits after the point: to the nearest, ties away from zero, as `cvt.rna`."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(x.dtype)


def pairs(left: np.ndarray, right: np.ndarray, precision: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Factors of the products that are added up for operands of fp32: "ieee" and "tf32x3" themselves, "tf32" rounded.

    The three products of "tf32x3" omit about 2^-22 of each. With this, 2 of the 65 combinations of attention's options
    reach 1.14 times their bound; only a GPU can decide these. The arrays may be wider than fp32, so that products are
    exact.
    """
    if precision in ("ieee", "tf32x3"):
        return [(left, right)]
    assert precision == "tf32", precision
    return [(to_tf32(left), to_tf32(right))]
