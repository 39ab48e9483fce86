"""Matrix products of inference on a CPU: the bits of a row do not depend on the rows beside it, and few calls are made.

Two things would make them depend. A BLAS takes other code for 1 to 3 rows than for more. And torch computes the last
elements of a tensor, those behind its last 32, without vectors, where `exp` and `tanh` round differently. Rows in
multiples of `row_multiple` avoid both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import gcd

import torch
from torch import Tensor, nn

from fmscale.infer.plain_blocks import plain, plain_block
from fmscale.models.decoder import Block
from fmscale.models.layers import Head

ROWS = 4
"""Fewest rows of a product. Measured on MKL 2024.2 and oneDNN 3.12, AVX-512: all larger numbers give the same bits."""
VECTOR = 32
"""Elements that torch's loops take at once: two AVX-512 registers of fp32."""
PACK_WEIGHTS = 2**18
"""Fewest weights of a packed matrix: below, oneDNN's call takes longer than its product saves. At 576 x 49,152 its
products of 4 and 32 rows take 0.3 and 0.6 of MKL's time."""
PACK_BYTES = 4 * 2**30
"""Most bytes of a model's matrices that are copied: they are in memory twice."""


def row_multiple(model: nn.Module) -> int:
    """Number that the rows of each forward must be a multiple of."""
    return max(ROWS, VECTOR // gcd(VECTOR, *(m.out_features for m in model.modules() if isinstance(m, nn.Linear))))


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Compute with copies of the matrices inside the block: large ones in oneDNN's layout, and in plain blocks those of
    one input as one.

    `generate` does this in each call; a caller of many short calls does it once around them. The weights must not
    change meanwhile. The copies take as long as about 7 tokens of a sequence. On a GPU, and for models above
    PACK_BYTES, nothing is copied.
    """
    changed = [block for block in model.modules() if isinstance(block, Block) and _free(block) and plain(block)]
    inside = {id(module) for block in changed for module in block.modules()}
    matrices = [m for m in model.modules() if id(m) not in inside and _matrix(m)]
    if sum(p.nbytes for module in (*changed, *matrices) for p in module.parameters()) > PACK_BYTES:
        changed, matrices = [], []
    forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = [(b, plain_block(b, _product)) for b in changed]
    for module in matrices:
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor), "a matrix has a weight"
        forwards.append((module, _product(weight, bias=bias)))
    for module, forward in forwards:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, _ in forwards:
            del module.__dict__["forward"]


def _free(module: nn.Module) -> bool:
    """False in an enclosing block of `packed`, and for a forward of the user's own."""
    return "forward" not in vars(module)


def _matrix(module: nn.Module) -> bool:
    if type(module).forward not in (nn.Linear.forward, Head.forward) or not _free(module):
        return False
    if getattr(module, "softcap", None) is not None:  # a head that does more than its product
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype in (torch.float32, torch.bfloat16)


def _product(*matrices: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x (..., in) -> (..., out) for matrices (out, in), one below the other."""
    weight = matrices[0].detach() if len(matrices) == 1 else torch.cat([one.detach() for one in matrices])
    if weight.numel() < PACK_WEIGHTS or not _packs(weight.dtype):
        across = weight.t().contiguous()  # 24 products of 32 rows in turn take 1.9 ms so, and 2.4 as `linear`
        if bias is None:
            return lambda x: x @ across
        return lambda x: torch.addmm(bias, x.flatten(0, -2), across).unflatten(0, x.shape[:-1])
    copy = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")


def _packs(dtype: torch.dtype) -> bool:
    """True where oneDNN has a layout of its own: bf16 needs AVX-512 or newer."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
