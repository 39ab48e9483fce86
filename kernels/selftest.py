"""Each kernel once beside its eager form, forward and gradients, in seconds: for a machine that nobody has tested yet.

The tolerance finds a miscompiled kernel, whose results are far off. `tests/kernels` judges the last bits.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from fmscale.kernels.adamw import adamw_step
from fmscale.kernels.attention.decode import attention_decode
from fmscale.kernels.attention.op import flash_attention
from fmscale.kernels.byte_planes import merge_byte_planes, split_byte_planes
from fmscale.kernels.linear_cross_entropy import linear_cross_entropy
from fmscale.kernels.rms_norm import rms_norm
from fmscale.kernels.rope import rope
from fmscale.kernels.rope_eager import document_positions
from fmscale.kernels.swiglu import swiglu
from torch import Tensor

TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 3e-3}
"""Most relative error (of norms) between two right results: both round in bf16, and fp32 products are in TF32."""

Case = Callable[[Callable[..., Tensor], str], tuple[Tensor, ...]]
"""Results of an op, given a function that makes an input of a shape, and the backend."""


def source_digest() -> str:
    """Digest of the kernels' sources."""
    folder = Path(__file__).parent
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def compare(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float | str]]:
    """(op, largest relative error), or (op, reason) for an op that could not run; on a GPU also for FALLBACK."""
    for name, case in {**CASES, **(FALLBACK if device.type == "cuda" else {})}.items():
        try:
            ours, eager = (_results(case, device, dtype, backend) for backend in ("triton", "eager"))
        except Exception as error:  # a compiler's or driver's error of any type is the result of this test
            yield name, f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        yield name, max(_difference(a, b) for a, b in zip(ours, eager, strict=True))


def _results(case: Case, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs: list[Tensor] = []

    def make(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        inputs.append(value)
        return value

    outputs = case(make, backend)
    if roots := [output for output in outputs if output.requires_grad]:
        torch.autograd.backward(roots, [torch.randn(root.shape, generator=generator).to(root) for root in roots])
    return [output.detach() for output in outputs] + [one.grad for one in inputs if one.grad is not None]


def _difference(ours: Tensor, eager: Tensor) -> float:
    error = torch.linalg.vector_norm(ours.double() - eager.double())
    found = float(error / torch.linalg.vector_norm(eager.double()).clamp(min=1e-30))
    return found if found == found else float("inf")  # NaN is an error without bound


def _attention(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    q, k, v = make(96, 4, 64), make(96, 2, 64), make(96, 2, 64)
    ends = torch.tensor([0, 40, 41, 96], dtype=torch.int32, device=q.device)
    return (flash_attention(q, k, v, cu_seqlens=ends, backend=backend),)


def _decode(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    q, k, v = (make(2, *shape).detach() for shape in ((4, 64), (80, 2, 64), (80, 2, 64)))
    return (attention_decode(q, k, v, torch.tensor([80, 33], device=q.device), backend=backend),)


def _rope(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    q, k = make(48, 4, 64), make(48, 2, 64)
    positions = document_positions(torch.tensor([0, 20, 48], device=q.device), 48)
    return rope(q, k, positions, q_weight=make(64), k_weight=make(64), backend=backend)


def _norm(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    found = rms_norm(make(48, 192), make(192), make(48, 192), backend=backend)
    assert isinstance(found, tuple), "there is a residual"
    return found


def _loss(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    hidden = make(48, 64)
    labels = torch.arange(48, device=hidden.device) * 7 % 300
    return (linear_cross_entropy(hidden, make(300, 64), labels, backend=backend)[0],)


def _adamw(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    state = [make(1000).detach().float() for _ in range(4)]
    state[3] = state[3].square()
    adamw_step(*state, lr=1e-2, weight_decay=0.1, step=3, backend=backend)
    return (state[0], state[2], state[3])


def _planes(make: Callable[..., Tensor], backend: str) -> tuple[Tensor, ...]:
    x = make(1111).detach()
    planes = split_byte_planes(x, backend=backend)
    return (planes, merge_byte_planes(planes, x.dtype, x.shape, backend=backend))


CASES: dict[str, Case] = {
    "flash_attention": _attention,
    "attention_decode": _decode,
    "rope": _rope,
    "rms_norm": _norm,
    "swiglu": lambda make, backend: (swiglu(make(48, 192), make(48, 192), backend=backend),),
    "linear_cross_entropy": _loss,
    "adamw_step": _adamw,
    "byte_planes": _planes,
}
"""Ops with a Triton backend."""
FALLBACK: dict[str, Case] = {
    "flash_attention (varlen)": lambda make, backend: _attention(make, "eager" if backend == "eager" else "varlen")
}
"""Torch's attention over documents, which `auto` takes where Triton's cannot serve a call."""
