"""Attention against fp64: every pair of features, and a test for each promise."""

import math
from typing import Any

import pytest
import torch
from fmscale.kernels import flash_attention
from fmscale.kernels.attention.device import tanh
from fmscale.kernels.launch import jit, tl

from tests.kernels.attention.attention_problems import Problem, judge, pairwise, results, tiles

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES: list[dict[str, Any]] = [
    {"T": 70, "S": 70},
    {"T": 40, "S": 77},
    {"T": 77, "S": 40},
    {"B": 2, "T": 33, "S": 33},
    {"documents": (31, 0, 1, 33)},
    {"documents": (32, 5, 20), "tail": 9},
    {"documents": (20, 0, 3, 34), "keys": (33, 4, 0, 21)},
]
FEATURES: dict[str, list[Any]] = {
    "shape": SHAPES,
    "heads": [(2, 2), (4, 2), (3, 1)],
    "E": [32, 40, 64],
    "dtype": DTYPES,
    "causal": [True, False],
    "window": [None, 9, 40],
    "softcap": [None, 3.0],
    "sinks": [False, True],
    # keys by 32: fp32 rows of 16, 64 bytes, are read out of bounds on Hopper (`compile/lint.py`)
    "tile": [(32, 32), (16, 32), (64, 32)],
}


def problem(case: dict[str, Any]) -> tuple[Problem, tuple[int, int]]:
    rest = dict(case)
    tile, shape, (H, K) = rest.pop("tile"), rest.pop("shape"), rest.pop("heads")
    return Problem(H=H, K=K, **shape, **rest), tile


PAIRS = [problem(case) for case in pairwise(FEATURES)]


@pytest.mark.parametrize(("wanted", "tile"), PAIRS, ids=str)
def test_every_pair_of_features(wanted: Problem, tile: tuple[int, int], device: torch.device) -> None:
    with tiles(*tile):
        judge(wanted, device)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
def test_every_combination(shape: dict[str, Any], heads: tuple[int, int], device: torch.device) -> None:
    H, K = heads
    for causal in (True, False):
        for window in (None, 1, 9, 40):
            for softcap, sinks in ((None, False), (3.0, True)):
                wanted = Problem(H=H, K=K, causal=causal, window=window, softcap=softcap, sinks=sinks, **shape)
                with tiles(32, 32):
                    judge(wanted, device, small=window == 1)


def shipped(E: int, dtype: torch.dtype, device: torch.device) -> None:
    """No forced tiles: the configurations that the package ships, padded where E is not a power of two."""
    judge(Problem(E=E, dtype=dtype, H=2, K=1, documents=(33, 1, 40), window=30, softcap=8.0, sinks=True), device)


@pytest.mark.parametrize(
    ("E", "dtype"), [(80, DTYPES[0]), (96, DTYPES[2]), (128, DTYPES[1]), (192, DTYPES[2]), (256, DTYPES[0])]
)
def test_wide_heads_with_shipped_tiles(E: int, dtype: torch.dtype, device: torch.device) -> None:
    shipped(E, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("E", [80, 96, 128, 192, 256])
def test_every_wide_head_with_shipped_tiles(E: int, dtype: torch.dtype, device: torch.device) -> None:
    shipped(E, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("E", range(32, 257, 8))
def test_every_head_dim(E: int, device: torch.device) -> None:
    judge(Problem(E=E, dtype=DTYPES[E // 8 % 3], H=2, K=1, T=130, S=130), device)


@pytest.mark.parametrize("E", [1, 8, 33])
def test_narrow_heads(E: int, device: torch.device) -> None:
    judge(Problem(E=E, T=20, S=20, H=2), device)


def test_several_tiles_of_the_shipped_sizes(device: torch.device) -> None:
    judge(Problem(dtype=torch.float16, E=64, H=2, K=1, T=250, S=256, window=100), device)


@pytest.mark.parametrize("edge", [-1, 0, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_document_edges_at_tile_edges(edge: int, causal: bool, device: torch.device) -> None:
    heads: dict[str, Any] = {"H": 2, "K": 1, "causal": causal}
    with tiles(32, 32):
        judge(Problem(documents=(32 + edge, 64 + edge, 1, 3), window=32 + edge, **heads), device)
        judge(Problem(documents=(32 + edge, 64 + edge), keys=(64 - edge, 32), **heads), device)


def test_large_scores_keep_the_running_maximum(device: torch.device) -> None:
    """Gradients come from exp(s - lse): at 60, an lse in a single fp32 number leaves p five digits."""
    judge(Problem(loud=10.0, T=100, S=100), device)
    judge(Problem(loud=30.0, T=100, S=100, sinks=True, softcap=20.0), device)


def test_scale(device: torch.device) -> None:
    judge(Problem(scale=0.5, T=40, S=40), device)
    judge(Problem(scale=0.02, softcap=1.0, T=40, S=40), device)


@jit
def tanh_kernel(X, Y, PRECISE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    tl.store(Y + at, tanh(tl.load(X + at), PRECISE))


@pytest.mark.parametrize("precise", [True, False])
def test_tanh(precise: bool, device: torch.device) -> None:
    """Errors in fp32 epsilons. Precise: 1 of the result below 0.35, where a series computes it, and 4 above; else 2 of
    1.

    The bounds double on a GPU, whose exp2 and division are approximate.
    """
    x = torch.cat([torch.logspace(-6, 2, 500), torch.linspace(0.3, 0.4, 524)]).to(device)
    for signed in (x, -x):
        y = torch.empty_like(x)
        tanh_kernel[(1,)](signed, y, precise, 1024)
        wanted = signed.double().tanh()
        error = (y - wanted).abs() / (wanted.abs() if precise else 1.0) / torch.finfo(torch.float32).eps
        assert float(error.max()) <= (4 if precise else 2) * (2 if device.type == "cuda" else 1)
        assert not precise or float(error[x < 0.35].max()) <= 1


def test_a_soft_cap_far_above_the_scores(device: torch.device) -> None:
    """Real models need this: tanh of small numbers times a large number must keep fp32's relative precision."""
    judge(Problem(softcap=50.0, T=40, S=40), device)


def test_matches_torch(device: torch.device) -> None:
    """torch's attention in fp64 on a CPU checks the eager reference of all other tests."""
    q, k, v = (torch.randn(2, 40, heads, 32).double() for heads in (4, 2, 2))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(flash_attention(q, k, v, backend="eager"), wanted)
    torch.testing.assert_close(flash_attention(q, k, v, backend="sdpa"), wanted)
    if device.type == "cpu":
        torch.testing.assert_close(flash_attention(q, k, v, backend="triton"), wanted)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_by_the_definition(backend: str, device: torch.device) -> None:
    """Each row computed explicitly: its keys, soft-cap, sink, log-sum-exp, with different lengths."""
    wanted = Problem(documents=(5, 3), keys=(4, 6), window=3, softcap=2.0, sinks=True, H=2, K=1, E=8)
    q, k, v, sinks = wanted.tensors(device)
    out, lse = wanted.run(q, k, v, sinks, backend=backend)
    for document in range(2):
        first_q, length_q = (0, 5)[document], (5, 3)[document]
        first_k, length_k = (0, 4)[document], (4, 6)[document]
        for m in range(length_q):
            position = m + length_k - length_q
            seen = [n for n in range(length_k) if position - 3 < n <= position]
            for h in range(2):
                scores = [float(q[first_q + m, h] @ k[first_k + n, 0]) * 8**-0.5 for n in seen]
                weights = [math.exp(2.0 * math.tanh(s / 2.0)) for s in scores]
                total = sum(weights) + math.exp(float(sinks[h]))
                row = sum((w / total * v[first_k + n, 0] for w, n in zip(weights, seen, strict=True)), v[0, 0] * 0)
                torch.testing.assert_close(out[first_q + m, h], row)
                torch.testing.assert_close(lse[h, first_q + m], torch.tensor(math.log(total), device=device))


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_see_nothing(backend: str, sinks: bool, device: torch.device) -> None:
    """0, -inf (with sinks: the sink) and gradients of 0, whatever the log-sum-exp's own gradient is."""
    wanted = Problem(T=40, S=13, H=2, sinks=sinks)  # the first 27 queries stand before the first key
    inputs = [one.requires_grad_() for one in wanted.tensors(device)]
    out, lse = wanted.run(*inputs, backend=backend)
    assert not out[:, :27].any()
    assert bool(out[:, 27:].any())
    level = inputs[3][None, :, None].expand(1, 2, 27) if sinks else torch.full((1, 2, 27), -torch.inf)
    torch.testing.assert_close(lse[:, :, :27], level.to(device))
    assert bool(lse[:, :, 27:].isfinite().all())
    upstream = torch.randn_like(lse)
    if not sinks:
        upstream[:, :, :27] = torch.nan  # no finite gradient comes from -inf
    grads = torch.autograd.grad([out, lse], inputs, [torch.randn_like(out), upstream])
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not grads[0][:, :27].any()
    assert bool(grads[0][:, 27:].any())


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_sink_of_minus_infinity_is_none(dtype: torch.dtype, device: torch.device) -> None:
    """This holds in rows without keys too, with a gradient of 0."""
    plain, with_sinks = (Problem(T=40, S=13, H=2, dtype=dtype, sinks=sinks) for sinks in (False, True))
    inputs = plain.tensors(device)
    none = torch.full((2,), -torch.inf, dtype=dtype, device=device)
    wanted = results(plain, inputs, "triton")
    *got, dsinks = results(with_sinks, [*inputs, none], "triton")
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(dsinks, torch.zeros_like(none))


@pytest.mark.parametrize("backend", ["eager", "triton", "sdpa"])
def test_tokens_after_the_last_document(backend: str, device: torch.device) -> None:
    q, k, v = (torch.randn(50, 2, 32, device=device, requires_grad=True) for _ in range(3))
    cu = torch.tensor([0, 0, 40, 40], device=device, dtype=torch.int32)
    if backend == "sdpa" and device.type != "cpu":
        pytest.skip("torch's attention needs the lengths on the host")
    out = flash_attention(q, k, v, cu_seqlens=cu, backend=backend)
    assert not out[40:].any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert not grad[40:].any()
        assert bool(grad[:40].isfinite().all())


def test_documents_are_islands(device: torch.device) -> None:
    """A document's results are the same bits at any place and beside any other documents."""
    q, k, v = (torch.randn(90, 2, 32, device=device) for _ in range(3))
    inputs = [q, k, v]

    def run(tensors: list[torch.Tensor], *ends: int) -> list[torch.Tensor]:
        leaves = [one.detach().clone().requires_grad_() for one in tensors]
        cu = torch.tensor(ends, device=device)
        out = flash_attention(*leaves, cu_seqlens=cu, backend="triton")
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    with tiles(32, 32):
        whole = run(inputs, 0, 7, 60, 90)
        alone = run([one[7:60] for one in inputs], 0, 53)
        poisoned = [one.clone() for one in inputs]
        for one in poisoned:
            one[:7] = torch.nan
            one[60:] = torch.inf
        beside = run(poisoned, 0, 7, 60, 90)
    for a, b, c in zip(whole, alone, beside, strict=True):
        assert torch.equal(a[7:60], b)
        assert torch.equal(c[7:60], b)


def test_rows_past_the_end_weigh_nothing(device: torch.device) -> None:
    """The tile of the first document's keys reaches into rows of the second, whose weights would be infinite."""
    wanted = Problem(documents=(20, 5), H=2, K=1)
    q, k, v = wanted.tensors(device)
    k[20:] = -q[20:, :1]
    q[20:] *= 40.0  # a log-sum-exp below -128 in base 2
    assert float(wanted.run(q, k, v, backend="eager")[1][:, 20:].min()) < -90
    with tiles(32, 32):
        assert all(bool(x.isfinite().all()) for x in results(wanted, [q, k, v], "triton"))


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    wanted = Problem(B=3, T=50, S=50)
    inputs = wanted.tensors(device)
    with tiles(32, 32):
        whole = wanted.run(*inputs, backend="triton")
        for b in range(3):
            alone = wanted.run(*(one[b : b + 1] for one in inputs), backend="triton")
            assert all(torch.equal(x[b : b + 1], y) for x, y in zip(whole, alone, strict=True))


def test_repeats_bit_for_bit(device: torch.device) -> None:
    wanted = Problem(documents=(40, 30), sinks=True)
    inputs = wanted.tensors(device)
    first = results(wanted, inputs, "triton")
    assert all(torch.equal(a, b) for a, b in zip(results(wanted, inputs, "triton"), first, strict=True))


@pytest.mark.parametrize(("T", "S"), [(0, 5), (5, 0), (0, 0)])
def test_empty_tensors(T: int, S: int, device: torch.device) -> None:
    judge(Problem(T=T, S=S, H=2, sinks=True), device)
    judge(Problem(documents=(T, 0), keys=(S, 0), H=2), device)
    judge(Problem(documents=(), T=0, H=2), device)
