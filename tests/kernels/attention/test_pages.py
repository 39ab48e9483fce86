"""Decoding over pages of keys against the reference, and its bits beside longer sequences."""

import pytest
import torch
from fmscale.kernels import attention_pages
from fmscale.kernels.attention.decode import decode_eager
from torch import Tensor

PAGE = 16


def pages_of(cache: Tensor, pages: int) -> Tensor:
    """(B, S, K, E) as (pages * B * K, PAGE, E)."""
    B, _, K, E = cache.shape
    return cache.view(B, pages, PAGE, K, E).permute(1, 0, 3, 2, 4).reshape(-1, PAGE, E)


def bias_of(lengths: Tensor, pages: int, T: int, heads: tuple[int, int], dtype: torch.dtype) -> Tensor:
    H, K = heads
    position = lengths[:, None] - T + torch.arange(T)
    hidden = torch.arange(pages * PAGE) > position[..., None]
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)
    bias = bias.view(len(lengths), 1, 1, T, pages, PAGE).permute(4, 0, 1, 2, 3, 5)
    return bias.expand(-1, -1, K, H // K, -1, -1).reshape(-1, H // K * T, PAGE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("T", "softcap", "heads"), [(1, None, (4, 2)), (3, None, (6, 2)), (2, 3.0, (2, 2))])
def test_output(dtype: torch.dtype, T: int, softcap: float | None, heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    (H, K), E, pages = heads, 24, 4
    lengths = torch.tensor([5, 64, 33])
    q = torch.randn(3, T, H, E).to(dtype)
    k, v = (torch.randn(3, pages * PAGE, K, E).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bias = bias_of(lengths, pages, T, heads, wide)
    ours = attention_pages(q, pages_of(k, pages), pages_of(v, pages), bias, softcap=softcap)
    exact, _ = decode_eager(
        q.double(), k.double(), v.double(), lengths, window=0, softcap=softcap or 0.0, sinks=None, scale=E**-0.5
    )
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, atol=2e-2 if dtype == torch.bfloat16 else 2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_do_not_depend_on_other_sequences_and_their_lengths(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    H, K, E, length = 6, 2, 40, 37
    q = torch.randn(3, 1, H, E).to(dtype)
    k, v = (torch.randn(3, 1100 * PAGE, K, E).to(dtype) for _ in range(2))
    found = []
    for rows, pages in (((0,), 3), ((0, 1), 5), ((0, 1, 2), 40), ((0, 2), 1100)):
        some = list(rows)
        lengths = torch.tensor([length, *[pages * PAGE] * (len(some) - 1)])
        cut = pages * PAGE
        bias = bias_of(lengths, pages, 1, (H, K), torch.float32)
        found.append(attention_pages(q[some], pages_of(k[some, :cut], pages), pages_of(v[some, :cut], pages), bias)[0])
    assert all(torch.equal(one, found[0]) for one in found)
