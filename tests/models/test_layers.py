"""The layers that models other than the decoder will use: encoders and cross-attention."""

import sys
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fmscale.config.model import RopeScaling
from fmscale.models.layers import CrossAttention, Embedding, FeedForward, RMSNorm, Rotary, SelfAttention, rotary

Layer = TypeVar("Layer", bound=nn.Module)
HEADS: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def drawn(module: Layer) -> Layer:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
    return module


def reference(layer: SelfAttention | CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    """Attention of every token to the whole context, by torch's own function."""
    q, k, v = (
        projection(of).unflatten(-1, (-1, 8)).transpose(-2, -3)
        for projection, of in ((layer.wq, x), (layer.wk, context), (layer.wv, context))
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    mixed: Tensor = layer.wo(out.transpose(-2, -3).flatten(-2))
    return mixed


@pytest.mark.parametrize("context_dim", [32, 20])
def test_cross_attention_sees_the_whole_context(context_dim: int) -> None:
    layer = drawn(CrossAttention(32, context_dim, **HEADS))
    x, context = torch.randn(3, 7, 32), torch.randn(3, 11, context_dim)
    torch.testing.assert_close(layer(x, context), reference(layer, x, context))
    backward = torch.autograd.grad(layer(x, context).square().sum(), list(layer.parameters()))
    wanted = torch.autograd.grad(reference(layer, x, context).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(backward, wanted)


def test_cross_attention_of_packed_texts_sees_their_own_contexts_only() -> None:
    layer = drawn(CrossAttention(32, 20, **HEADS))
    texts, contexts = (5, 0, 9), (4, 3, 6)
    x, context = torch.randn(1, sum(texts), 32), torch.randn(1, sum(contexts), 20)
    cu, cu_k = (torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (texts, contexts))
    out = layer(x, context, cu_seqlens=cu, cu_seqlens_k=cu_k)
    for i in range(3):
        own, its = slice(int(cu[i]), int(cu[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        torch.testing.assert_close(out[:, own], reference(layer, x[:, own], context[:, its]))


def test_an_encoder_sees_what_follows() -> None:
    layer = drawn(SelfAttention(32, **HEADS, causal=False))
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(layer(x), reference(layer, x, x))
    causal = drawn(SelfAttention(32, **HEADS))
    assert not torch.allclose(causal(x), layer(x))
    torch.testing.assert_close(causal(x)[:, -1], layer(x)[:, -1])


def test_rotary_attention_depends_on_distances_only() -> None:
    layer = drawn(SelfAttention(32, **HEADS, causal=False, rotary=Rotary(100.0)))
    x, positions = torch.randn(1, 6, 32), torch.tensor([[3, 1, 4, 1, 5, 9]])
    out = layer(x, positions_BT=positions)
    torch.testing.assert_close(layer(x, positions_BT=positions + 50), out, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(x, positions_BT=positions * 2), out, atol=1e-3)


def test_scaled_turns_are_kept_as_tensors_of_no_mode() -> None:
    """The backward saves them: neither a first call in inference mode nor a fake tensor may leave its mark."""
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=64)
    turn, positions = Rotary(77.0, scaling), torch.arange(6)
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode()):
        with mode:
            turn(torch.empty(1, 6, 4, 8), torch.empty(1, 6, 2, 8), positions)
    kept = rotary._kept_turns(8, 77.0, scaling, torch.device("cpu"))
    assert type(kept) is Tensor
    assert not kept.is_inference()
    torch.testing.assert_close(kept, rotary.scaled_turns(8, 77.0, scaling, torch.device("cpu")))


def test_the_feed_forward_is_gated() -> None:
    layer = drawn(FeedForward(16, 24))
    x = torch.randn(3, 16)
    wanted = (nn.functional.silu(x @ layer.w1.weight.t()) * (x @ layer.w3.weight.t())) @ layer.w2.weight.t()
    torch.testing.assert_close(layer(x), wanted)


def test_an_offset_of_the_norm_loses_no_bits_of_a_small_weight() -> None:
    """As Gemma computes it: 1 + w in fp32, and a single rounding to bf16."""
    norm = drawn(RMSNorm(64, eps=1e-6, offset=1.0)).to(torch.bfloat16)
    norm.weight.data *= 2**-7  # 1 + w has fewer bits in bf16
    x = torch.randn(5, 64).to(torch.bfloat16)
    wide = x.float()
    wanted = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + norm.weight.float())
    assert torch.equal(norm(x), wanted.to(torch.bfloat16))
    rounded = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + norm.weight).float()
    assert not torch.equal(norm(x), rounded.to(torch.bfloat16))


def test_the_norm_adds_the_residual_first() -> None:
    norm = drawn(RMSNorm(16, eps=1e-3))
    x, residual = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    y, h = norm(x, residual)
    torch.testing.assert_close(h, x + residual)
    torch.testing.assert_close(y, nn.functional.rms_norm(h, (16,), norm.weight, 1e-3))
    torch.testing.assert_close(norm(h), y)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux's")
def test_the_gradient_of_a_large_embedding_holds_the_rows_that_were_read() -> None:
    """The same bits as torch's, whose gradient holds all rows; 16 MiB and more count as large."""
    layer = drawn(Embedding(2**14, 256))
    weight = layer.weight
    ids, given = torch.tensor([[5, 2, 16000], [5, 7, 5]]), torch.randn(2, 3, 256)
    (found,) = torch.autograd.grad(layer(ids), weight, given)
    maps = Path("/proc/self/smaps").read_text().split(f"\n{found.data_ptr():x}-")[1]
    assert int(maps.split("\nRss:")[1].split()[0]) <= 4 * 4  # KiB of four rows, a page at most each
    (wanted,) = torch.autograd.grad(nn.functional.embedding(ids, weight), weight, given)
    assert torch.equal(found, wanted)
    assert layer(ids).equal(nn.functional.embedding(ids, weight))
