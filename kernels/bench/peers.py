"""The peers. Each is optional: one that cannot be built raises, and its error becomes its reason."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def module(name: str, package: str) -> Any:
    """An optional module, or an ImportError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{package} is not installed here") from error


@contextlib.contextmanager
def _only(backend: str) -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        yield


def sdpa(backend: str, *, causal: bool) -> Attention:
    """Torch's attention with one backend: FLASH_ATTENTION or CUDNN_ATTENTION. (B, T, H, E) in and out."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with _only(backend):
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, enable_gqa=True
            )
        return out.transpose(1, 2)

    return run


def flex(
    mask: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], length: int, device: torch.device,
    *, rebuild: bool, sinks: Tensor | None = None,
) -> Attention:  # fmt: skip
    """Compiled FlexAttention; with `rebuild`, the block mask is made in every call, as new documents need."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    make: Any = torch.compile(create_block_mask, dynamic=False) if rebuild else create_block_mask

    def block_mask() -> Any:
        return make(mask, None, None, length, length, device=device)

    kept = None if rebuild else block_mask()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            block_mask=kept if kept is not None else block_mask(), enable_gqa=True,
            return_lse=sinks is not None,
        )  # fmt: skip
        if sinks is None:
            return cast(Tensor, out).transpose(1, 2)
        out, lse = out
        # a sink is one more exp(sink) in the softmax's denominator
        share = torch.sigmoid(lse - sinks[None, :, None].float())
        return cast(Tensor, out * share[..., None].to(out.dtype)).transpose(1, 2)

    return run


def varlen(cu_seqlens: Tensor, longest: int) -> Attention:
    """torch.nn.attention.varlen; `longest` is known on the host, which ours does not need."""
    attend = module("torch.nn.attention.varlen", "torch with varlen_attn").varlen_attn

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(
            q[0], k[0], v[0], cu_seqlens, cu_seqlens, longest, longest, window_size=(-1, 0),
            enable_gqa=True,
        )  # fmt: skip
        return cast(Tensor, out)[None]

    return run


def flash4(*, causal: bool) -> Attention:
    """FlashAttention 4 (CuTe DSL), where it is installed."""
    attend = module("flash_attn.cute", "flash-attn-4").flash_attn_func

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, causal=causal)
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)

    return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` through torch.compile."""
    return torch.compile(function, dynamic=False)
