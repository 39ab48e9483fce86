"""A transformer made of the kernels: the same loss and gradients by every backend."""

from typing import Any

import pytest
import torch
from fmscale.kernels import document_positions, flash_attention, linear_cross_entropy, rms_norm, rope, swiglu
from torch import Tensor

from tests.kernels.policy import check


def weights(D: int, H: int, K: int, E: int, F: int, V: int, layers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, D), "head": (V, D), "last": (D,)}
    for i in range(layers):
        shapes |= {
            f"{i}.qkv": ((H + 2 * K) * E, D), f"{i}.out": (D, H * E), f"{i}.gate_up": (2 * F, D), f"{i}.down": (D, F),
            f"{i}.before": (D,), f"{i}.between": (D,), f"{i}.sinks": (H,),
        }  # fmt: skip
    found = {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    return {name: w + 1 if w.dim() == 1 and "sinks" not in name else w for name, w in found.items()}


def loss_and_gradients(
    named: dict[str, Tensor], tokens: Tensor, cu: Tensor, heads: tuple[int, int], backend: str
) -> dict[str, Tensor]:
    w = {name: one.detach().clone().requires_grad_() for name, one in named.items()}
    H, K = heads
    chosen: Any = {"backend": backend}
    positions = document_positions(cu, tokens.numel())
    residual = w["embedding"][tokens]
    x: Any = rms_norm(residual, w["0.before"], **chosen)
    layers = sum(name.endswith(".qkv") for name in w)
    E = w["0.out"].shape[1] // H
    for i in range(layers):
        heads_all = torch.nn.functional.linear(x, w[f"{i}.qkv"]).unflatten(-1, (-1, E))
        q, k, v = heads_all.split([H, K, K], dim=1)
        q, k = rope(q, k, positions, **chosen)
        mixed = flash_attention(q, k, v, cu_seqlens=cu, window=40 if i % 2 else None, sinks=w[f"{i}.sinks"], **chosen)
        x, residual = rms_norm(
            torch.nn.functional.linear(mixed.flatten(1), w[f"{i}.out"]), w[f"{i}.between"], residual, **chosen
        )
        gate, up = torch.nn.functional.linear(x, w[f"{i}.gate_up"]).chunk(2, dim=-1)
        x = torch.nn.functional.linear(swiglu(gate, up, **chosen), w[f"{i}.down"])
        following = w["last"] if i + 1 == layers else w[f"{i + 1}.before"]
        x, residual = rms_norm(x, following, residual, **chosen)
    total, count = linear_cross_entropy(x, w["head"], tokens.roll(-1), **chosen)
    loss = total / count
    gradients = torch.autograd.grad(loss, list(w.values()))
    return {"loss": loss.detach(), **dict(zip(w, gradients, strict=True))}


def compare(dtype: torch.dtype, device: torch.device, sizes: tuple[int, ...], lengths: list[int]) -> None:
    named = {name: one.to(device, dtype) for name, one in weights(*sizes).items()}
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=device, dtype=torch.int32)
    tokens = torch.randint(0, sizes[5], (sum(lengths),), generator=torch.Generator().manual_seed(1)).to(device)
    heads = (sizes[1], sizes[2])
    ours = loss_and_gradients(named, tokens, cu, heads, "triton")
    eager = loss_and_gradients(named, tokens, cu, heads, "eager")
    golden = loss_and_gradients({name: w.double() for name, w in named.items()}, tokens, cu, heads, "eager")
    for name, mine in ours.items():
        gold = golden[name].double()
        if name == "loss":
            torch.testing.assert_close(mine.double(), gold, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0.0)
        else:
            check(mine, eager[name], gold, name=name)
        cosine = torch.nn.functional.cosine_similarity(mine.double().flatten(), gold.flatten(), dim=0)
        assert name == "loss" or float(cosine) > (0.9999 if dtype == torch.float32 else 0.99), (name, cosine)


def test_loss_and_gradients(device: torch.device) -> None:
    compare(torch.float32, device, (32, 4, 2, 16, 48, 90, 2), [33, 0, 1, 30])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_sizes(dtype: torch.dtype, device: torch.device) -> None:
    compare(dtype, device, (1024, 16, 4, 64, 2816, 32000, 4), [1000, 1, 0, 2047, 1048])
