"""Device functions shared by the attention kernels: documents, schedules, ranges, masks, soft-cap.

Words: a document has `length_q` queries and `length_k` keys; query row m stands at key position
m + length_k - length_q (the last query sees the last key, as in flash-attention since 2.1).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from fmscale.kernels.launch import HAVE_TRITON, Kernel, jit, tl

WIDEST = 256
"""Largest head dim."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Bits of a tile's sort key: work 20, document 22, tile in the document 21; 63 in all, so it is positive.
DOCUMENTS_LIMIT = 2**22 - 2
"""Most documents in one call."""
TOKENS_LIMIT = 2**25
"""Most packed tokens in one call: 2^21 tiles of 16."""
# No document is that long; keeps position + window within 32 bits.
NO_WINDOW = 2**30
# A tile has at most 128 rows, whose offsets are 32-bit; from tile to tile they are 64-bit.
FAR = 2**24


def sized(*names: str) -> Callable[[Callable[..., None]], Kernel]:
    """`jit` without a recompilation for values of the named integers (token and document counts)."""

    def decorate(kernel: Callable[..., None]) -> Kernel:
        if not HAVE_TRITON:
            return cast(Kernel, kernel)
        import triton

        return cast(Kernel, triton.jit(kernel, do_not_specialize=list(names)))

    return decorate


@jit
def place(pid, tiles, heads, section):  # type: ignore[no-untyped-def]
    """(tile, head) of a program: all tiles of `section` heads, whose keys fit into L2, then the next."""
    first = pid // (tiles * section) * section
    inner = pid - first * tiles
    width = tl.minimum(section, heads - first)
    return inner // width, first + inner % width


@jit
def unpack(key):  # type: ignore[no-untyped-def]
    """(document, tile in it) of a sort key."""
    return ((key >> 21) & 4194303).to(tl.int32), (key & 2097151).to(tl.int32)


@jit
def extent(CU, document, documents, total):  # type: ignore[no-untyped-def]
    """(first token, tokens) of a document; number `documents` is what follows the last one.

    Clamped to the tensor: offsets that make no sense then give a wrong result, never a wild access.
    """
    first = tl.load(CU + document).to(tl.int32)
    end = tl.load(CU + document + 1, mask=document < documents, other=total).to(tl.int32)
    first = tl.minimum(tl.maximum(first, 0), total)
    return first, tl.minimum(tl.maximum(end, first), total) - first


@jit
def key_range(  # type: ignore[no-untyped-def]
    m0, length_q, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr
):
    """Keys [lo, hi) that some query of rows m0 .. m0 + BLOCK - 1 sees."""
    offset = length_k - length_q
    last = tl.minimum(m0 + BLOCK, length_q) - 1 + offset
    lo = m0 * 0
    hi = lo + length_k
    if CAUSAL:
        hi = tl.minimum(hi, last + 1)
    elif WINDOW:
        hi = tl.minimum(hi, last + window)
    if WINDOW:
        lo = tl.maximum(m0 + offset - window + 1, 0)
    return lo, tl.maximum(hi, lo)


@jit
def query_range(  # type: ignore[no-untyped-def]
    n0, length_q, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr
):
    """Queries [lo, hi) that see some key of n0 .. n0 + BLOCK - 1."""
    offset = length_k - length_q
    last = tl.minimum(n0 + BLOCK, length_k) - 1
    lo = n0 * 0
    hi = lo + length_q
    if CAUSAL:
        lo = tl.maximum(n0 - offset, 0)
    elif WINDOW:
        lo = tl.maximum(n0 - offset - window + 1, 0)
    if WINDOW:
        hi = tl.minimum(hi, last + window - offset)
    return lo, tl.maximum(hi, lo)


@jit
def near(position, key, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether the query at key position `position` sees `key` by causality and window; broadcasts.

    One of CAUSAL and WINDOW must be on.
    """
    if CAUSAL:
        seen = key <= position
        if WINDOW:
            seen = seen & (key > position - window)
    else:
        seen = (key > position - window) & (key < position + window)
    return seen


@jit
def visible(  # type: ignore[no-untyped-def]
    position, key, length_k, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr
):
    """(queries, keys): `near`, and the key exists; of causal masks the first implies the second."""
    seen = key[None, :] < length_k
    if CAUSAL:
        seen = near(position[:, None], key[None, :], window, CAUSAL, WINDOW)
    elif WINDOW:
        seen = seen & near(position[:, None], key[None, :], window, CAUSAL, WINDOW)
    return seen


@jit
def tanh(x, PRECISE: tl.constexpr):  # type: ignore[no-untyped-def]
    """tanh by exp2. Near 0 that loses relative precision, which only fp32 inputs can show: a series."""
    y = 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.885390081777927))  # 2 log2 e; right at both infinities
    if PRECISE:
        z = tl.minimum(x * x, 0.1225)
        series = 0.021869488536155203 + z * -0.008863235529902197
        series = -0.05396825396825397 + z * series
        series = -0.3333333333333333 + z * (0.13333333333333333 + z * series)
        y = tl.where(tl.abs(x) < 0.35, x + x * (z * series), y)
    return y


def precision(dtype: torch.dtype, E: int) -> str:
    """How fp32 products are made: three TF32 products keep fp32's accuracy on tensor cores.

    Their operands' halves take registers: above a head dim of 128 they spill, and products are plain fp32.
    """
    return "tf32x3" if dtype == torch.float32 and E <= 128 else "ieee"


def block_e(E: int) -> int:
    """Padded head dim. At least 64: rows of 32 16-bit elements are miscompiled (`compile/lint.py`)."""
    return max(64, 1 << (E - 1).bit_length())


def per_section(heads: int, bytes_per_head: int) -> int:
    """How many heads run side by side so that what they share stays in L2.

    32 MiB of the 50 MiB of a Hopper: the rest holds what streams through.
    """
    return max(1, min(heads, 2**25 // max(1, bytes_per_head)))


Strides = tuple[int, int, int]


def strides(x: torch.Tensor) -> Strides:
    """Strides of (B, T, H, E) but the last, which is 1."""
    return cast(Strides, x.stride()[:3])


def unit(x: torch.Tensor) -> torch.Tensor:
    """`x` itself where a tile's offsets fit into 32 bits and its last stride is 1, else a copy."""
    return x if x.stride(-1) == 1 and x.stride(1) < FAR else x.contiguous()


Launch = dict[str, Any]
