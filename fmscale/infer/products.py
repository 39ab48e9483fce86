"""Matrix products of inference on a CPU: the bits of a row do not depend on the rows beside it, and few calls are made.

Two things would make them depend. A BLAS takes other code for 1 to 3 rows than for more. And torch computes the last
elements of a tensor, those behind its last 32, without vectors, where `exp` and `tanh` round differently. Rows in
multiples of `row_multiple` avoid both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import gcd

import torch
from torch import Tensor, nn

from fmscale.models.layers import FeedForward, Head, SelfAttention

ROWS = 4
"""Fewest rows of a product. Measured on MKL 2024.2 and oneDNN 3.12, AVX-512: all larger numbers give the same bits."""
VECTOR = 32
"""Elements that torch's loops take at once: two AVX-512 registers of fp32."""
PACK_WEIGHTS = 2**18
"""Fewest weights of a packed matrix: below, oneDNN's call takes longer than its product saves. At 576 x 49,152 its
products of 4 and 32 rows take 0.3 and 0.6 of MKL's time."""
PACK_BYTES = 4 * 2**30
"""Most bytes of a model's matrices that are copied: they are in memory twice."""
TOGETHER = {SelfAttention: ("wq", "wk", "wv"), FeedForward: ("w1", "w3")}
"""Matrices that a layer applies to the same input, in the order of their calls: one product computes them."""

Product = Callable[[Tensor], Tensor]


def row_multiple(model: nn.Module) -> int:
    """Number that the rows of each forward must be a multiple of."""
    return max(ROWS, VECTOR // gcd(VECTOR, *(m.out_features for m in model.modules() if isinstance(m, nn.Linear))))


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Compute with copies of the matrices inside the block: those of one input as one, large ones in oneDNN's layout.

    `generate` does this in each call; a caller of many short calls does it once around them. The weights must not
    change meanwhile. The copies take as long as about 7 tokens of a sequence. On a GPU, and for models above
    PACK_BYTES, nothing is copied.
    """
    plain = {id(module): module for module in model.modules() if _plain(module)}
    if sum(module.weight.nbytes for module in plain.values()) > PACK_BYTES:
        plain = {}
    modules = list(plain.values())
    for layer in model.modules():
        names = next((names for kind, names in TOGETHER.items() if type(layer) is kind), ())
        members = [getattr(layer, name) for name in names]
        if members and all(id(one) in plain and one.bias is None for one in members):
            _join(members)
            for one in members:
                del plain[id(one)]
    for module in plain.values():
        module.forward = _product(module.weight, getattr(module, "bias", None))
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _plain(module: nn.Module) -> bool:
    """True for a matrix on a CPU that computes as usual, and not in an enclosing block of `packed`."""
    if type(module).forward not in (nn.Linear.forward, Head.forward) or "forward" in vars(module):
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype in (torch.float32, torch.bfloat16)


def _product(weight: Tensor, bias: Tensor | None) -> Product:
    weight = weight.detach()
    if weight.numel() < PACK_WEIGHTS or not torch.backends.mkldnn.is_available():
        return lambda x: nn.functional.linear(x, weight, bias)
    copy = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")


def _join(members: list[nn.Linear]) -> None:
    """Let the first module compute for all; the others take their part if their input is the same tensor."""
    product = _product(torch.cat([one.weight.detach() for one in members]), None)
    sizes = [one.out_features for one in members]
    kept: list[tuple[Tensor, list[Tensor]]] = []

    def part(number: int, x: Tensor) -> Tensor:
        if number == 0 or not kept or kept[0][0] is not x:
            kept[:] = [(x, list(product(x).split(sizes, -1)))]
        found = kept[0][1][number]
        if number == len(sizes) - 1:
            kept.clear()
        return found

    for number, one in enumerate(members):
        one.forward = partial(part, number)
