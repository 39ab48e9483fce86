"""Problem sizes: the full benchmark's, the quick one's, and tiny ones that an interpreter can run."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all problems of a run."""

    tokens: int = 16384
    """Tokens per attention problem, B * T."""
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """Sequence lengths T of the dense attention rows."""
    heads: int = 32
    """Query heads."""
    kv_heads: int = 8
    """Key and value heads."""
    mean_document: int = 1024
    """Mean length of the packed documents."""
    window: int = 1024
    """Sliding window."""
    window_length: int = 8192
    """Sequence length of the window rows."""
    rows: int = 16384
    """Rows of the norm and activation problems."""
    hidden: int = 4096
    """Hidden size."""
    ffn: int = 14336
    """Width of the gated activation."""
    loss_tokens: int = 8192
    """Tokens of the loss problem."""
    vocabulary: int = 128256
    """Vocabulary of the loss problem."""
    parameters: int = 10**9
    """Length of the optimizer's partition."""
    checked_parameters: int = 10**6
    """Length of the partition whose numbers are checked."""
    plane_elements: int = 2**28
    """Elements of the byte-plane problem."""
    dtype: torch.dtype = torch.bfloat16
    """Dtype of activations and weights."""


FULL = Sizes()
QUICK = Sizes(lengths=(4096,), parameters=10**8, plane_elements=2**26, vocabulary=32768)
TINY = Sizes(
    tokens=64, lengths=(32, 64), heads=2, kv_heads=1, window=16, window_length=32, rows=64, hidden=64,
    dtype=torch.float32,
)  # fmt: skip
