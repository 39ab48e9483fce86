"""Triton kernels for training: deterministic, differentiable, usable under torch.compile(fullgraph=True).

The package imports torch and, where it is installed, triton. Without triton or without a GPU, each op runs its eager
backend. In reading order:

    launch.py                needs of every kernel's launch: Triton or its absence, dtypes, devices, rows
    dispatch.py              the backend and the launch configuration of a call, from the tuning tables
    swiglu.py                the shortest op: kernels, configurations, registration, eager form, public function
    rms_norm.py              the norm, with the residual addition before it
    rope.py                  rotary positions, with an optional norm of each head; rope_eager.py in plain torch
    linear_cross_entropy.py  the loss of a projection without its logits
    attention/               attention and decoding
    adamw.py                 an optimizer step on a flat partition
    byte_planes.py           the bytes of numbers laid apart, for compression
    selftest.py              each kernel once beside its eager form, for a new machine

All functions are bound here, at once: modules and ops share names, and a later import of a module would put the module
in the place of its function.
"""

from fmscale.kernels.adamw import adamw_step
from fmscale.kernels.attention.decode import attention_decode
from fmscale.kernels.attention.op import flash_attention
from fmscale.kernels.attention.pages import attention_pages
from fmscale.kernels.byte_planes import merge_byte_planes, split_byte_planes
from fmscale.kernels.linear_cross_entropy import linear_cross_entropy
from fmscale.kernels.rms_norm import rms_norm
from fmscale.kernels.rope import rope
from fmscale.kernels.rope_eager import document_positions
from fmscale.kernels.swiglu import swiglu

__all__ = [
    "adamw_step",
    "attention_decode",
    "attention_pages",
    "document_positions",
    "flash_attention",
    "linear_cross_entropy",
    "merge_byte_planes",
    "rms_norm",
    "rope",
    "split_byte_planes",
    "swiglu",
]
