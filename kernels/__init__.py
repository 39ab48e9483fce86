"""Triton kernels for training: deterministic, differentiable, usable under torch.compile(fullgraph=True).

Everything here imports torch and, where it is installed, triton; without triton, or without a GPU, each
op runs its eager backend. `python -m fmscale.kernels.bench` measures them from a bare checkout.

The functions are bound here, at once: the modules have the ops' names, and importing one later would
put the module in the function's place.
"""

from fmscale.kernels.adamw import adamw_step
from fmscale.kernels.attention.decode import attention_decode
from fmscale.kernels.attention.op import flash_attention
from fmscale.kernels.byte_planes import merge_byte_planes, split_byte_planes
from fmscale.kernels.linear_cross_entropy import linear_cross_entropy
from fmscale.kernels.rms_norm import rms_norm
from fmscale.kernels.rope import document_positions, rope
from fmscale.kernels.swiglu import swiglu

__all__ = [
    "adamw_step",
    "attention_decode",
    "document_positions",
    "flash_attention",
    "linear_cross_entropy",
    "merge_byte_planes",
    "rms_norm",
    "rope",
    "split_byte_planes",
    "swiglu",
]
