"""Attention of a few new tokens to cached keys in pages of fixed size, in plain torch: decoding on a CPU.

All products have the shape of a single page, whatever the cache's length, and the pages are summed in order. A page
without a visible key adds zeros. So a sequence decodes to the same bits beside longer sequences, which a product over
all keys would not do: a BLAS cuts a long sum by its length. Source: the split of `decode.py`, with pages for spans.
"""

import torch
from fmscale.kernels.launch import accumulator
from torch import Tensor


def attention_pages(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, bias: Tensor, *, softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale + bias) v over all pages; returns q's shape and dtype, without gradients.

    q (B, T, H, E); k_pages and v_pages (pages, B, K, page, E), contiguous; bias (pages * B * K, H // K * T, page) of
    the accumulator's dtype, 0 for visible keys and -inf for others, rows ordered by (head of the group, token). Each
    query needs a visible key. softcap c: scores s become c * tanh(s / c) before the bias. The softmax is in fp32.
    """
    B, T, H, E = q.shape
    pages, _, K, page, _ = k_pages.shape
    rows = H // K * T
    scale = E**-0.5 if scale is None else scale
    grouped = q.view(B, T, K, H // K, E).permute(0, 2, 3, 1, 4).reshape(1, B * K, rows, E)
    grouped = grouped.expand(pages, -1, -1, -1).reshape(pages * B * K, rows, E)
    keys, values = k_pages.view(-1, page, E).mT, v_pages.view(-1, page, E)
    if softcap is None and q.dtype == bias.dtype:
        scores = torch.baddbmm(bias, grouped, keys, alpha=scale)
    else:
        scores = torch.bmm(grouped, keys).to(accumulator(q.dtype)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores += bias
    peak = scores.amax(-1, keepdim=True)
    if pages > 1:
        peak = peak.view(pages, B * K, rows, 1).amax(0)
    weights = scores.view(pages, B * K, rows, page).sub_(peak).exp_().view(scores.shape)
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights.to(v_pages.dtype), values).to(total.dtype)
    if pages > 1:
        total, out = (x.view(pages, B * K, rows, -1).sum(0) for x in (total, out))
    out = (out / total).to(q.dtype).view(B, K, H // K, T, E)
    return out.permute(0, 3, 1, 2, 4).reshape(B, T, H, E)
