"""Attention of a few new tokens to cached keys in pages of fixed size, in plain torch: decoding on a CPU.

All products have the shape of a single page, whatever the cache's length, and the pages are summed in order. A page
without a visible key adds zeros. So a sequence decodes to the same bits beside longer sequences, which a product over
all keys would not do: a BLAS cuts a long sum by its length. Source: the split of `decode.py`, with pages for spans.
"""

import torch
from fmscale.kernels.launch import accumulator
from torch import Tensor


def attention_pages(
    q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, *, softcap: float | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + bias) v over all pages; returns q's shape and dtype, without gradients.

    q (B, T, H, E); keys and values (pages * B * K, page, E), contiguous; bias (pages * B * K, H // K * T, page) of the
    accumulator's dtype, 0 for visible keys and -inf for others, its rows by (head of the group, token). Each query
    needs a visible key. softcap c: scores s become c * tanh(s / c) before the bias. The softmax is in fp32.
    """
    B, T, H, E = q.shape
    rows = bias.shape[1]
    heads = B * H * T // rows  # key heads of all sequences
    pages = len(keys) // heads
    scale = E**-0.5 if scale is None else scale
    if T > 1:
        q = q.view(B, T, -1, rows // T, E).permute(0, 2, 3, 1, 4)
    grouped = q.reshape(heads, rows, E)
    if pages > 1:
        grouped = grouped.expand(pages, heads, rows, E).reshape(-1, rows, E)
    if softcap is None and q.dtype == bias.dtype:
        scores = torch.baddbmm(bias, grouped, keys.mT, alpha=scale)
    else:
        scores = torch.bmm(grouped, keys.mT).to(accumulator(q.dtype)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores += bias
    peak = scores.amax(-1, keepdim=True)
    if pages > 1:
        peak = peak.view(pages, heads, rows, 1).amax(0).expand(pages, heads, rows, 1).reshape(-1, rows, 1)
    weights = scores.sub_(peak).exp_()
    total = weights.sum(-1, keepdim=True)
    narrow = weights if weights.dtype == values.dtype else weights.to(values.dtype)
    out = torch.bmm(narrow, values)
    if pages > 1:
        total, out = (x.view(pages, heads, rows, -1).sum(0, dtype=total.dtype) for x in (total, out))
    out = out / total
    if out.dtype != q.dtype:
        out = out.to(q.dtype)
    if T > 1:
        out = out.view(B, -1, rows // T, T, E).permute(0, 3, 1, 2, 4)
    return out.reshape(B, T, H, E)
