"""The peers, all optional: a peer that cannot be built raises, and its error becomes its reason."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def module(name: str, package: str) -> Any:
    """An optional module, or an ImportError with the package to install."""
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
    """torch.nn.attention.varlen; unlike fmscale's kernel, it needs `longest` on the host."""
    attend = module("torch.nn.attention.varlen", "torch with varlen_attn").varlen_attn
    # torch 2.10 has is_causal, later ones window_size; enable_gqa came after 2.11
    known = inspect.signature(attend).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (t.flatten(0, 1) for t in (q, k, v))
        out = attend(*flat, cu_seqlens, cu_seqlens, longest, longest, **options)
        return cast(Tensor, out).view(q.shape)

    return run


def plain(mask: Callable[[], Tensor], *, sinks: Tensor | None = None) -> Attention:
    """Attention written out in torch, softmax in fp32; `mask()` (T, T) is True where a query sees a key."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[2] // k.shape[2]
        keys, values = (t.transpose(1, 2).repeat_interleave(group, 1) for t in (k, v))
        scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        scores = scores.masked_fill(~mask(), float("-inf"))
        if sinks is not None:
            column = sinks[:, None, None].expand(*scores.shape[:-1], 1).to(scores.dtype)
            scores = torch.cat((scores, column), -1)
        shares = scores.softmax(-1, dtype=torch.float32).to(q.dtype)[..., : k.shape[1]]
        out: Tensor = shares @ values
        return out.transpose(1, 2)

    return run


def flash4(*, causal: bool) -> Attention:
    """FlashAttention 4 (CuTe DSL), where it is installed."""
    attend = module("flash_attn.cute", "flash-attn-4").flash_attn_func

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, causal=causal)
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)

    return run


def flash4_varlen(cu_seqlens: Tensor, longest: int) -> Attention:
    """FlashAttention 4 over packed documents."""
    attend = module("flash_attn.cute", "flash-attn-4").flash_attn_varlen_func

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(
            q[0], k[0], v[0], cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens,
            max_seqlen_q=longest, max_seqlen_k=longest, causal=True,
        )  # fmt: skip
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)[None]

    return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` through torch.compile."""
    return torch.compile(function, dynamic=False)
