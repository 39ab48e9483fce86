import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from fmscale.kernels.dispatch import forced
from fmscale.kernels.linear_cross_entropy import linear_cross_entropy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.kernels.eager_loss import linear_cross_entropy_eager
from fmscale.errors import KernelError
from tests.kernels.policy import check_op, gradients, noted

module: Any = sys.modules["fmscale.kernels.linear_cross_entropy"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = ["triton", "eager"]
SMALL = {"BLOCK": 64, "num_warps": 4}


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """Several blocks a row at the vocabularies of these tests."""
    with forced("linear_cross_entropy", "cross_entropy", SMALL):
        yield


def problem(T: int, D: int, V: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(T, D, device=device).to(dtype)
    weight = (torch.randn(V, D, device=device) * 2 * D**-0.5).to(dtype)
    labels = torch.randint(0, V, (T,), device=device)
    labels[::5] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [1, 4, 16])
def test_sum_count_and_gradients(dtype: torch.dtype, chunks: int, backend: str, device: torch.device) -> None:
    """16 chunks pass only because they are accumulated in fp32: in bf16 the mean error is 1.4 x eager's."""
    hidden, weight, labels = problem(64, 24, 130, dtype, device)
    chunk_bytes = 64 // chunks * 130 * dtype.itemsize

    def ours(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(h, w, labels, z_loss=1e-3, chunk_bytes=chunk_bytes, backend=backend)

    def eager(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy_eager(h, w, labels, z_loss=1e-3)

    upstream = [torch.tensor(1 / 64, device=device), torch.tensor(0.0, device=device)]
    check_op(ours, eager, [hidden, weight], upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounded_logits(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """Gemma 2's final soft-cap, also in the gradients; the bound is far below the largest logit."""
    hidden, weight, labels = problem(64, 24, 130, dtype, device)

    def ours(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(h, w, labels, softcap=1.5, chunk_bytes=2080 * dtype.itemsize, backend=backend)

    def eager(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy_eager(h, w, labels, softcap=1.5)

    upstream = [torch.tensor(1 / 64, device=device), torch.tensor(0.0, device=device)]
    check_op(ours, eager, [hidden, weight], upstream)


@settings(max_examples=10, deadline=None)
@given(T=st.integers(0, 9), V=st.integers(1, 150), chunk=st.integers(1, 2000), weighted=st.booleans())
def test_any_shape(device: torch.device, T: int, V: int, chunk: int, weighted: bool) -> None:
    hidden, weight, labels = problem(T, 8, V, torch.float32, device)
    weights = torch.rand(T, device=device) if weighted else None
    (total, count), grads = gradients(
        lambda h, w: linear_cross_entropy(
            h, w, labels, token_weights=weights, chunk_bytes=chunk, backend="triton"
        ),
        [hidden, weight], [torch.ones((), device=device)] * 2,
    )  # fmt: skip
    (wanted, wanted_count), wanted_grads = gradients(
        lambda h, w: linear_cross_entropy_eager(h, w, labels, token_weights=weights),
        [hidden, weight], [torch.ones((), device=device)] * 2,
    )  # fmt: skip
    torch.testing.assert_close([total, count, *grads], [wanted, wanted_count, *wanted_grads])


def test_against_torch(device: torch.device) -> None:
    hidden, weight, labels = problem(30, 16, 100, torch.float32, device)
    total, count = linear_cross_entropy(hidden, weight, labels, backend="triton")
    wanted = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(total, wanted)
    assert count.item() == (labels != -100).sum().item() == 24


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_never_whole(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    name = "_cross_entropy" if backend == "triton" else "_cross_entropy_torch"
    inner: Any = getattr(module, name)

    def watched(logits: Tensor, *rest: object) -> Any:
        held.append(logits.numel() * logits.element_size())
        return inner(logits, *rest)

    monkeypatch.setattr(module, name, watched)
    hidden, weight, labels = problem(50, 8, 64, torch.float32, device)
    linear_cross_entropy(hidden, weight, labels, chunk_bytes=8 * 64 * 4, backend=backend)
    assert len(held) == 7
    assert max(held) <= 8 * 64 * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_each_token(backend: str, device: torch.device) -> None:
    hidden, weight, labels = problem(10, 8, 70, torch.float32, device)
    weights = torch.rand(10, device=device)
    total, count, losses = linear_cross_entropy(
        hidden.requires_grad_().view(2, 5, 8), weight, labels.view(2, 5), token_weights=weights.view(2, 5),
        chunk_bytes=4 * 70 * 4, return_losses=True, backend=backend,
    )  # fmt: skip
    wanted = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none") * weights
    torch.testing.assert_close(losses, wanted.detach().view(2, 5))
    torch.testing.assert_close((total, count), (wanted.sum(), weights[labels != -100].sum()))
    assert total.requires_grad
    assert not losses.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_tokens_weigh_nothing(backend: str, device: torch.device) -> None:
    hidden, weight, labels = problem(10, 8, 70, torch.float32, device)
    hidden.requires_grad_()
    total, count = linear_cross_entropy(hidden, weight, labels, z_loss=0.1, backend=backend)
    total.backward()
    kept = labels != -100
    wanted, _ = linear_cross_entropy_eager(hidden[kept], weight, labels[kept], z_loss=0.1)
    torch.testing.assert_close(total, wanted)
    assert count.item() == 8
    assert hidden.grad is not None
    assert not hidden.grad[~kept].any()
    none, zero = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), backend=backend)
    assert none.item() == zero.item() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label", [-1, 70, 2**40])
def test_a_label_outside_the_vocabulary_is_not_silent(label: int, backend: str, device: torch.device) -> None:
    hidden, weight, labels = problem(10, 8, 70, torch.float32, device)
    labels[3] = label
    assert linear_cross_entropy(hidden, weight, labels, backend=backend)[0].isnan()


def test_huge_logits_do_not_overflow(device: torch.device) -> None:
    hidden = torch.tensor([[1e4], [-1e4]], device=device)
    weight = torch.linspace(-1, 1, 130, device=device)[:, None]
    labels = torch.tensor([129, 129], device=device)
    total, _ = linear_cross_entropy(hidden, weight, labels, backend="triton")
    torch.testing.assert_close(total, linear_cross_entropy_eager(hidden, weight, labels)[0])


def test_a_frozen_side_costs_nothing(device: torch.device) -> None:
    hidden, weight, labels = problem(10, 8, 70, torch.float32, device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(noted(kept), lambda t: t):
        linear_cross_entropy(hidden.requires_grad_(), weight, labels, backend="triton")
    assert sorted(t.numel() for t in kept) == [0, hidden.numel()]


def test_the_weight_gradient_is_scaled_in_its_place(device: torch.device) -> None:
    """A second backward, which would scale it again, is refused."""
    hidden, weight, labels = problem(10, 8, 700, torch.float32, device)
    kept: list[int] = []

    def note(stored: Tensor) -> Tensor:  # only its address: a gradient with a reference is copied
        kept.append(stored.data_ptr())
        return stored

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        total, _ = linear_cross_entropy(hidden, weight.requires_grad_(), labels, backend="triton")
    with torch.profiler.profile(profile_memory=True) as profile:
        (total * 3).backward()
    assert weight.grad is not None
    assert weight.grad.data_ptr() in kept
    # nor is another V x D made for an output that has no gradient
    assert all(event.cpu_memory_usage < weight.nbytes for event in profile.events() or ())
    weight.grad = None
    total, _ = linear_cross_entropy(hidden, weight, labels, backend="triton")
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        total.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("the fp64 path is for the interpreter")
    hidden = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0, 3, 8, -100, 2, 5]), torch.rand(6, dtype=torch.float64)

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(
            h, w, labels, token_weights=weights, z_loss=0.1, chunk_bytes=2 * 9 * 8, backend=backend
        )[0]

    def again(h: Tensor, w: Tensor) -> Any:  # gradcheck runs backward twice through one graph
        return torch.utils.checkpoint.checkpoint(loss, h, w, use_reentrant=False)

    assert torch.autograd.gradcheck(again, (hidden, weight), fast_mode=True)


def test_registration(device: torch.device) -> None:
    hidden, weight, labels = problem(6, 4, 70, torch.float32, device)
    arguments = (hidden.requires_grad_(), weight.requires_grad_(), labels, None, -100, 0.1, 2.0, 600, True, True)
    torch.library.opcheck(torch.ops.fmscale.linear_cross_entropy.default, (*arguments, True))


def test_compiles_whole(device: torch.device) -> None:
    hidden, weight, labels = problem(6, 4, 70, torch.float32, device)

    def mean(h: Tensor, w: Tensor) -> Tensor:
        total, count = linear_cross_entropy(h * 2, w, labels, backend="triton")
        return total / count

    one = torch.ones((), device=device)
    got = gradients(torch.compile(mean, fullgraph=True, backend="aot_eager"), [hidden, weight], [one])
    wanted = gradients(mean, [hidden, weight], [one])
    torch.testing.assert_close(got, wanted)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    hidden, weight, labels = problem(6, 4, 70, torch.float32, device)
    for h, w, y in (
        (hidden, weight.half(), labels),
        (hidden, weight, labels[:5]),
        (hidden, weight[:, :3], labels),
    ):
        with pytest.raises(KernelError, match="integer labels"):
            linear_cross_entropy(h, w, y)


@pytest.mark.gpu
def test_real_sizes(device: torch.device) -> None:
    hidden, weight, labels = problem(8192, 1024, 32768, torch.bfloat16, device)
    with forced("linear_cross_entropy", "cross_entropy", module.configs()["cross_entropy"][0]):

        def ours(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            return linear_cross_entropy(h, w, labels, chunk_bytes=2**27, backend="triton")

        def eager(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            return linear_cross_entropy_eager(h, w, labels)

        upstream = [torch.tensor(1 / 8192, device=device), torch.tensor(0.0, device=device)]
        check_op(ours, eager, [hidden, weight], upstream)


@pytest.mark.gpu
def test_memory_stays_below_a_gibibyte(device: torch.device) -> None:
    """8192 x 4096 x 128k in bf16, beyond the inputs and the gradients themselves."""
    hidden, weight, labels = problem(8192, 4096, 128256, torch.bfloat16, device)
    hidden.requires_grad_()
    weight.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(hidden, weight, labels, backend="triton")[0].backward()
    gradient_bytes = sum(t.grad.nbytes for t in (hidden, weight) if t.grad is not None)
    assert torch.cuda.max_memory_allocated() - before - gradient_bytes <= 2**30
