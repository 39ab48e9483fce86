"""Matrix products of inference on a CPU: the bits of a row do not depend on the rows beside it.

Two things would make them depend. A BLAS takes other code for 1 to 3 rows than for more. And torch computes the last
elements of a tensor, those behind its last 32, without vectors, where `exp` and `tanh` round differently. Rows in
multiples of `row_multiple` avoid both. `packed` keeps large matrices in oneDNN's layout: at 576 x 49,152, products of 4
and 32 rows take 0.3 and 0.6 of MKL's time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import gcd

import torch
from torch import Tensor, nn

from fmscale.models.layers import Head

ROWS = 4
"""Fewest rows of a product. Measured on MKL 2024.2 and oneDNN 3.12, AVX-512: all larger numbers give the same bits."""
VECTOR = 32
"""Elements that torch's loops take at once: two AVX-512 registers of fp32."""
PACK_WEIGHTS = 2**18
"""Fewest weights of a packed matrix: below, the call takes longer than its product saves."""
PACK_BYTES = 4 * 2**30
"""Most bytes of the matrices that a model may have packed: they are in memory twice."""


def row_multiple(model: nn.Module) -> int:
    """Number that the rows of each forward must be a multiple of."""
    return max(ROWS, VECTOR // gcd(VECTOR, *(linear.out_features for linear in _linears(model))))


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Compute with packed copies of the large matrices inside the block: `generate` does it in each call, a caller of
    many small calls does it once around them. The weights must not change meanwhile. Packing takes as long as about 7
    tokens of a sequence; without oneDNN, on a GPU and for models above PACK_BYTES nothing is packed.
    """
    modules = [m for m in model.modules() if _can_pack(m)]
    if sum(m.weight.nbytes for m in modules) > PACK_BYTES:
        modules = []
    for module in modules:
        copy = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
        module.forward = partial(_product, copy, getattr(module, "bias", None))
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _can_pack(module: nn.Module) -> bool:
    if type(module).forward not in (nn.Linear.forward, Head.forward) or "forward" in vars(module):
        return False
    weight = module.weight
    kinds = (torch.float32, torch.bfloat16)
    fits = weight.device.type == "cpu" and weight.dtype in kinds and weight.numel() >= PACK_WEIGHTS
    return fits and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
