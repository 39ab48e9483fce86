"""A model and its optimizer as a checkpoint stores them: ranges of logical tensors, not a rank's layout."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""torch's name of a type -> its name in safetensors, and bytes of an element."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A range of one logical tensor, and the live memory that holds it."""

    name: str
    """Name of the logical tensor, such as `layers.0.attention.wq.weight`."""
    state: str = "weight"
    """`weight` (the fp32 master, or the only copy), `exp_avg`, `exp_avg_sq`, `buffer`, ..."""
    dtype: str
    """torch's name of the type, without `torch.`; `float32` for instance."""
    shape: tuple[int, ...]
    """Shape of the whole logical tensor."""
    start: int = 0
    """First element of the range in the tensor flattened in C order."""
    tensor: "Tensor"
    """Elements [start, start + numel): 1-D, contiguous, on a CPU or a GPU; a live view, read by a save and
    written by a restore."""

    @property
    def count(self) -> int:
        """Elements in the range."""
        return self.tensor.numel()


def elements(shape: tuple[int, ...] | list[int]) -> int:
    """Number of elements of a tensor of this shape."""
    return math.prod(shape)


def whole(name: str, tensor: "Tensor", state: str = "weight") -> Piece:
    """A piece that covers a whole contiguous tensor."""
    return Piece(
        name=name,
        state=state,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        tensor=tensor.detach().view(-1),
    )
