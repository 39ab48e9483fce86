import math
from typing import Any

import pytest
import torch
from fmscale.kernels.adamw import adamw_step, adamw_step_eager
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmscale.errors import KernelError
from tests.kernels.policy import check

BACKENDS = ["triton", "eager"]


def partition(n: int, device: torch.device, grad: torch.dtype = torch.float32) -> list[Tensor]:
    """master, grad, first moment, second moment."""
    torch.manual_seed(0)
    master, gradient, first, second = (torch.randn(n, device=device) for _ in range(4))
    return [master, gradient.to(grad), first * 0.1, second.square() * 0.01]


@pytest.mark.parametrize("backend", BACKENDS)
def test_follows_torch(backend: str, device: torch.device) -> None:
    master, _, first, second = (t * scale for t, scale in zip(partition(2000, device), (1, 1, 0, 0), strict=True))
    reference = torch.nn.Parameter(master.clone())
    optimizer = torch.optim.AdamW([reference], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 6):
        grad = torch.randn_like(master)
        reference.grad = grad.clone()
        optimizer.step()
        adamw_step(master, grad, first, second, lr=1e-2, weight_decay=0.1, step=step, backend=backend)
    torch.testing.assert_close(master, reference.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grad", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("copy", [torch.float16, torch.bfloat16])
def test_unscales_clips_and_copies(grad: torch.dtype, copy: torch.dtype, device: torch.device) -> None:
    results = []
    for kind in ("triton", "eager", "golden"):
        master, gradient, first, second = partition(3001, device, grad)
        low = torch.full((3001,), float("nan"), dtype=copy, device=device)
        options: dict[str, Any] = {
            "loss_scale": torch.tensor(8.0, device=device), "grad_norm": torch.tensor(3.0, device=device),
            "max_norm": 1.5, "lr": 1e-2, "weight_decay": 0.1, "step": 3,
        }  # fmt: skip
        if kind == "golden":
            master, gradient, first, second, low = (t.double() for t in (master, gradient, first, second, low))
            adamw_step_eager(master, gradient, first, second, copy=low, **options)
        else:
            adamw_step(master, gradient, first, second, copy=low, backend=kind, **options)
        results.append([master, first, second, low])
    for name, ours, eager, golden in zip(("master", "first", "second", "copy"), *results, strict=True):
        check(ours, eager, golden, name=name)
    assert torch.equal(results[0][3], results[0][0].to(copy))  # cast(master) == weight, always


def test_a_norm_below_the_limit_is_not_raised(device: torch.device) -> None:
    plain, clipped = partition(100, device), partition(100, device)
    adamw_step(*plain, lr=1e-2, step=1, backend="triton")
    norm = torch.tensor(0.5, device=device)
    adamw_step(*clipped, grad_norm=norm, max_norm=1.0, lr=1e-2, step=1, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(plain, clipped, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [math.inf, math.nan])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_step_that_is_not_finite_writes_nothing(
    norm: float, max_norm: float | None, backend: str, device: torch.device
) -> None:
    state = partition(100, device)
    state[1][7] = norm
    low = torch.zeros(100, dtype=torch.bfloat16, device=device)
    before = [t.clone() for t in (*state, low)]
    measured = torch.tensor(norm, device=device)
    adamw_step(*state, copy=low, grad_norm=measured, max_norm=max_norm, lr=1.0, step=1, backend=backend)
    for now, then in zip((*state, low), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=12, deadline=None)
@given(n=st.integers(0, 5000), step=st.integers(1, 10**6), decay=st.floats(0, 1))
def test_any_length(device: torch.device, n: int, step: int, decay: float) -> None:
    ours, eager = partition(n, device), partition(n, device)
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": decay, "step": step}
    adamw_step(*ours, **options, backend="triton")
    adamw_step_eager(*eager, **options)
    torch.testing.assert_close(ours, eager)


def test_registration(device: torch.device) -> None:
    state = partition(10, device)
    low = torch.zeros(10, dtype=torch.bfloat16, device=device)
    rest = (None, 1e-3, 0.9, 0.95, 1e-8, 0.0, 1)
    torch.library.opcheck(torch.ops.fmscale.adamw_step.default, (*state, low, None, None, *rest))
    torch.library.opcheck(torch.ops.fmscale.adamw_step.default, (*state, None, None, None, *rest))


def test_compiles_whole(device: torch.device) -> None:
    plain, compiled = partition(50, device), partition(50, device)
    adamw_step(*plain, lr=1e-2, step=1, backend="triton")

    def update(*state: Tensor) -> None:
        adamw_step(*state, lr=1e-2, step=1, backend="triton")

    torch.compile(update, fullgraph=True, backend="aot_eager")(*compiled)
    torch.testing.assert_close(compiled, plain)


def test_errors_name_what_to_do(device: torch.device) -> None:
    master, grad, first, second = partition(10, device)
    options: dict[str, Any] = {"lr": 1e-3, "step": 1}
    with pytest.raises(KernelError, match="second_moment in fp32"):
        adamw_step(master, grad, first, second.half(), **options)
    with pytest.raises(KernelError, match="Flatten"):
        adamw_step(master.view(2, 5), grad, first, second, **options)
    with pytest.raises(KernelError, match="grad flat, contiguous and as long"):
        adamw_step(master, grad[:9], first, second, **options)
    with pytest.raises(KernelError, match="grad_norm wherever"):
        adamw_step(master, grad, first, second, max_norm=1.0, **options)
    with pytest.raises(KernelError, match="first step is 1"):
        adamw_step(master, grad, first, second, lr=1e-3, step=0)
    with pytest.raises(KernelError, match="one fp32 number"):
        adamw_step(master, grad, first, second, grad_norm=torch.ones(2, device=device), **options)


@pytest.mark.gpu
def test_real_sizes(device: torch.device) -> None:
    ours, eager = (partition(2**27 + 13, device, torch.bfloat16) for _ in range(2))
    adamw_step(*ours, lr=1e-3, step=1, backend="triton")
    adamw_step_eager(*eager, lr=1e-3, step=1)
    torch.testing.assert_close(ours, eager)
