"""`linear_cross_entropy` in plain torch with whole logits: the reference of its tests and rows."""

import torch
from fmscale.kernels.launch import accumulator, rows
from fmscale.kernels.linear_cross_entropy import _weights
from torch import Tensor


def linear_cross_entropy_eager(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, token_weights: Tensor | None = None,
    ignore_index: int = -100, z_loss: float = 0.0, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The weighted sum of the losses, and the sum of the weights; arguments as of `linear_cross_entropy`."""
    logits = rows(hidden) @ weight.t()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wide = logits.to(accumulator(logits.dtype))
    flat = labels.reshape(-1)
    flat_weights = None if token_weights is None else token_weights.reshape(-1)
    scale, index, known = _weights(flat, flat_weights, ignore_index, weight.shape[0], wide.dtype)
    lse = torch.logsumexp(wide, -1)
    target = torch.where(known, wide.gather(1, index[:, None])[:, 0], torch.nan)
    loss = lse - target + z_loss * lse.square()
    return torch.where(flat == ignore_index, 0.0, scale * loss).sum(), scale.sum()
