"""The host's side of attention: no wait for the device, no recompilation; offsets have 64 bits."""

import itertools
from typing import Any

import pytest
import torch
from fmscale.kernels import flash_attention
from fmscale.kernels.attention.backward import backward
from fmscale.kernels.attention.forward import forward
from fmscale.kernels.attention.tiles import tile_list
from fmscale.kernels.dispatch import forced
from fmscale.kernels.launch import INTERPRETED
from torch import Tensor

from tests.kernels.launches import note_launches, run_only

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="looks into Triton's interpreter")
KERNELS = {"slots_kernel", "forward_kernel", "delta_kernel", "dkdv_kernel", "dq_kernel"}
WAITS = (
    "item", "tolist", "cpu", "numpy", "nonzero", "equal", "unique", "__int__", "__float__", "__bool__", "__index__",
)  # fmt: skip
LAYOUTS = (
    [0], [1], [16], [17], [1024], [16384], [5] * 3 + [1], [1] * 15, [1] * 16, [100] * 17, [3000, 0, 24],
    [64] * 256, [1] * 40000, [150001, 49999],
)  # fmt: skip
"""Lengths of documents; they make every count odd and a multiple of 16, most 1, and heads split into sections."""


class Waited(Exception):
    """The host read a value on the device."""


def both_ways(lengths: list[int], *, tail: int = 0) -> None:
    """Attention over documents, forward and backward."""
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    tokens = sum(lengths) + tail
    q, k, v = (torch.empty(tokens, 4, 32).requires_grad_() for _ in range(3))
    out, lse = flash_attention(
        q, k, v, cu_seqlens=ends, window=700, sinks=torch.empty(4), return_lse=True, backend="triton"
    )
    upstream = [torch.empty(1).expand(x.shape) for x in (out, lse)]
    torch.autograd.grad([out, lse], [q, k, v], upstream)


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward nor the tile list reads a tensor on the host."""
    launches = note_launches(monkeypatch)
    lengths = [20, 0, 13]
    cu = torch.tensor([0, *itertools.accumulate(lengths)])

    def refuse(*_: object, **__: object) -> None:
        raise Waited

    for name in WAITS:
        monkeypatch.setattr(Tensor, name, refuse)
    both_ways(lengths, tail=7)
    tile_list(cu, cu, 40, 40, block=16, keys=True, causal=False, window=0)
    assert {one.kernel for one in launches} == KERNELS
    with pytest.raises(Waited):
        int(cu.max())


def test_no_layout_of_documents_compiles_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton does not specialize on any number that changes with the documents or the tokens."""
    launches = note_launches(monkeypatch)
    for lengths in LAYOUTS:
        both_ways(lengths)
        both_ways(lengths, tail=9)
    assert {one.kernel for one in launches} == KERNELS
    for kernel in sorted(KERNELS - {"slots_kernel"}):
        keys = {one.key for one in launches if one.kernel == kernel}
        assert len(keys) == 1, (
            kernel,
            {pair for key in keys for pair in key} - set.intersection(*map(set, keys)),
        )
    slots = {one.key for one in launches if one.kernel == "slots_kernel"}
    assert len(slots) == 3  # a list each for the forward, dK and dV, and dQ, which differ in their tiles


def one_row_everywhere(tokens: int, heads: int, *, seed: int) -> Tensor:
    """(1, tokens, heads, 256), the same row for each token."""
    row = torch.randn(1, 1, heads, 256, generator=torch.Generator().manual_seed(seed), dtype=torch.float16)
    return row.expand(-1, tokens, -1, -1)


FAR = 2**21 + 64
"""Tokens whose last rows, of 4 heads of 256 numbers, lie 2^31 numbers from the first."""
LAUNCH: dict[str, Any] = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2}
SETTINGS: dict[str, Any] = {"causal": False, "window": 0, "softcap": 0.0, "scale": 0.06}


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with forced("attention", "forward", LAUNCH):
        found: tuple[Tensor, Tensor, Tensor] = forward(q, k, v, None, None, None, **SETTINGS)
        return found


def differentiate(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, out: Tensor, lse: Tensor, level: Tensor
) -> list[Tensor]:
    with forced("attention", "dkdv", LAUNCH), forced("attention", "dq", LAUNCH):
        return list(backward(dout, None, q, k, v, out, lse, level, None, None, None, **SETTINGS))


def test_queries_past_31_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output and dQ beyond 2^31 numbers: the last tile is that of the same rows in a small problem.

    Only the first and the last program run; the tensors between them are never touched, so have no memory.
    """
    k, v = (one_row_everywhere(16, 4, seed=seed) * torch.arange(1, 17)[:, None, None] for seed in (1, 2))
    q, dout = (one_row_everywhere(64, 4, seed=seed) for seed in (3, 4))
    small, lse, level = attend(q, k.half(), v.half())
    (dq, *_) = differentiate(q, k.half(), v.half(), dout, small, lse, level)
    run_only(monkeypatch, {"forward_kernel": (0, -1), "delta_kernel": (0, -1), "dq_kernel": (0, -1)})
    q, dout = (one_row_everywhere(FAR, 4, seed=seed) for seed in (3, 4))
    out, lse, level = attend(q, k.half(), v.half())
    assert out.numel() > 2**31
    assert torch.equal(out[:, -16:, -1], small[:, -16:, -1])
    out[:, -64:, -1] = small[:, :, -1]  # results of the omitted programs
    lse[:, -1, -64:] = lse[:, -1, -1]
    (far, *_) = differentiate(q, k.half(), v.half(), dout, out, lse, level)
    assert torch.equal(far[:, -16:, -1], dq[:, -16:, -1])
    assert dq.any()


def test_keys_past_31_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """dK and dV beyond 2^31 numbers, of few queries; see above."""
    q, dout = (one_row_everywhere(16, 4, seed=seed) * torch.arange(1, 17)[:, None, None] for seed in (1, 2))
    k, v = (one_row_everywhere(64, 4, seed=seed) for seed in (3, 4))
    rest = attend(q.half(), k, v)
    _, dk, dv, _ = differentiate(q.half(), k, v, dout.half(), *rest)
    run_only(monkeypatch, {"delta_kernel": range(4), "dkdv_kernel": (0, -1)})
    k, v = (one_row_everywhere(FAR, 4, seed=seed) for seed in (3, 4))
    _, far_k, far_v, _ = differentiate(q.half(), k, v, dout.half(), *rest)
    assert far_k.numel() > 2**31
    for far, near in ((far_k, dk), (far_v, dv)):
        assert torch.equal(far[:, -16:, -1], near[:, -16:, -1])
        assert near[:, -16:, -1].any()
