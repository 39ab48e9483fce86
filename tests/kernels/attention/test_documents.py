"""Documents on a CPU: batches of equal lengths give the results of documents alone."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fmscale.kernels import flash_attention
from fmscale.kernels.attention import eager as module
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fmscale.errors import KernelError
from tests.kernels.policy import check, gradients

LENGTHS = (5, 16, 16, 0, 9, 16, 1, 40, 9, 0, 5, 5)
KEYS = (7, 3, 3, 4, 0, 3, 2, 9, 9, 0, 7, 1)
TAIL = 3


def offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def runs(lengths: Sequence[int], keys: Sequence[int] | None, **options: Any) -> tuple[Callable[..., Any], ...]:
    """The packed call, and the same documents in a call each."""

    def packed(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Any:
        cu_k = None if keys is None else offsets(keys)
        return flash_attention(q, k, v, cu_seqlens=offsets(lengths), cu_seqlens_k=cu_k, backend=backend, **options)

    def alone(q: Tensor, k: Tensor, v: Tensor, backend: str = "eager") -> Any:
        found = []
        ends = zip(offsets(lengths).tolist(), offsets(keys or lengths).tolist(), lengths, keys or lengths, strict=False)
        for a, c, T, S in ends:
            one = (q[a : a + T], k[c : c + S], v[c : c + S])
            found.append(flash_attention(*one, backend=backend if T else "eager", **options))
        return torch.cat([*found, torch.zeros_like(q[sum(lengths) :])])

    return packed, alone


def tensors(lengths: Sequence[int], keys: Sequence[int] | None, K: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(sum(n) + TAIL, heads, 16) for n, heads in ((lengths, 4), (keys or lengths, K), (keys or lengths, K))]
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize("scores", [2**20, 1000], ids=["batches", "small batches"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("keys", [None, KEYS], ids=["own keys", "cross"])
@pytest.mark.parametrize("options", [{}, {"window": 4}, {"softcap": 3.0}], ids=str)
def test_batches_against_documents_alone(
    options: dict[str, Any], keys: tuple[int, ...] | None, causal: bool, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients of grouped heads, with empty documents and tokens after the last, against fp64.

    SDPA serves the calls without options and cross attention. Its dq of a document of a single key is rounding, where
    eager's is exactly 0, so that eager's error is no bound for it: 1.35e-6 over a bound of 1.30e-6.
    """
    monkeypatch.setattr(module, "BATCH_SCORES", scores)
    packed, alone = runs(LENGTHS, keys, causal=causal, **options)
    inputs = tensors(LENGTHS, keys, 2)
    upstream = [torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(4))]
    ours, same = (gradients(run, inputs, upstream) for run in (packed, alone))
    golden = gradients(alone, [x.double() for x in inputs], upstream)
    names = ("out", "dq", "dk", "dv")
    for name, *three in zip(names, *([*out, *grads] for out, grads in (ours, same, golden)), strict=True):
        if options or keys:
            check(*three, name=name)
        else:
            torch.testing.assert_close(three[0], three[2].float())


@pytest.mark.parametrize("causal", [True, False])
def test_sdpa_gives_a_document_the_same_bits_beside_any_others(causal: bool) -> None:
    packed, alone = runs(LENGTHS, None, causal=causal)
    inputs = tensors(LENGTHS, None, 4)
    upstream = [torch.ones_like(inputs[0])]
    for mine, theirs in zip(
        gradients(lambda *x: packed(*x, backend="sdpa"), inputs, upstream),
        gradients(lambda *x: alone(*x, backend="sdpa"), inputs, upstream),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


class Shapes(TorchDispatchMode):
    """Query shapes (documents, heads, length, E) of torch's CPU attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.seen.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_equal_lengths_are_a_single_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours or not; bounded batches, and no copy of a document that fills its batch."""
    lengths = (16, 16, 36, 16, 36, 0, 16)
    packed, _ = runs(lengths, None)
    with Shapes() as all_together:
        packed(*tensors(lengths, None, 4))
    assert all_together.seen == [(4, 4, 16, 16), (2, 4, 36, 16)]
    monkeypatch.setattr(module, "BATCH_SCORES", 3 * 4 * 16 * 16)
    with Shapes() as bounded:
        packed(*tensors(lengths, None, 4))
    assert [shape[0] for shape in bounded.seen] == [3, 1, 1, 1]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("ends", [[1, 5, 20], [0, 9, 5, 20], [0, 21]], ids=str)
def test_offsets_that_do_not_fit_are_refused(ends: list[int], backend: str) -> None:
    q = torch.randn(20, 2, 8)
    with pytest.raises(KernelError, match=r"start at 0, never decrease.*20.*cumulative lengths"):
        flash_attention(q, q, q, cu_seqlens=torch.tensor(ends), backend=backend)
