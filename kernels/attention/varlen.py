"""torch.nn.attention.varlen: torch's own flash attention over documents, where Triton's kernels cannot serve a call."""

from typing import Any, cast

import torch
from fmscale.kernels.attention.eager import FLASH_WIDEST
from torch import Tensor

GROUPED = {"enable_gqa": True} if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12) else {}
"""Option for grouped heads, which torch has since 2.12."""


def varlen_refusal(
    q: Tensor, k: Tensor, cu_k: Tensor | None, softcap: float | None, sinks: Tensor | None, return_lse: bool
) -> str | None:
    """Reason why it cannot serve a call, or None. `cu_k` are offsets of the keys' own."""
    if q.device.type != "cuda":
        return "it runs on CUDA devices alone"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic, which torch.use_deterministic_algorithms asks for"
    features = {
        "a soft-cap": softcap is not None, "sinks": sinks is not None, "return_lse": return_lse,
        "keys with lengths of their own": cu_k is not None or q.shape[:-2] != k.shape[:-2],
        "grouped heads before torch 2.12": not GROUPED and q.shape[-2] != k.shape[-2],
    }  # fmt: skip
    for feature, used in features.items():
        if used:
            return f"it cannot do {feature}"
    if q.dtype.itemsize != 2 or q.shape[-1] > FLASH_WIDEST or q.shape[-1] % 8:
        return f"{q.dtype} with a head dim of {q.shape[-1]}: it takes 16 bits and multiples of 8 up to {FLASH_WIDEST}"
    return None if q.numel() else "empty tensors"


def varlen(q: Tensor, k: Tensor, v: Tensor, cu: Tensor | None, *, causal: bool, window: int, scale: float) -> Tensor:
    """(B, T, H, E) over (B, T, H, E) and (B, T, K, E), of documents `cu` (B is 1) or of whole rows; window 0 is none.

    Nothing waits for the device: the longest document counts as long as all tokens, and programs beyond the end of a
    document end at once. The tokens behind the last document are a document of their own, whose output becomes 0.
    """
    # The import takes seconds, which only a call that needs it spends.
    from torch.nn.attention.varlen import varlen_attn

    B, T = q.shape[:2]
    bounds = torch.arange(0, B * T + 1, T, device=q.device) if cu is None else torch.cat((cu, cu.new_full((1,), T)))
    bounds = bounds.to(torch.int32)
    reach = window - 1 if window else -1  # a window counts the token itself
    options: dict[str, Any] = {"scale": scale, "window_size": (reach, 0 if causal else reach), **GROUPED}
    out = cast(Tensor, varlen_attn(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bounds, bounds, T, T, **options))
    if cu is not None:
        out = out.masked_fill((torch.arange(T, device=q.device) >= cu[-1])[:, None, None], 0.0)
    return out.view(q.shape)
