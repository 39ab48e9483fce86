"""The self-test of the kernels passes here, and finds a kernel that is wrong, or does not run."""

from typing import Any

import pytest
import torch
from fmscale.kernels import selftest

from tests.kernels.conftest import INTERPRETED

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16


@pytest.mark.slow
def test_every_kernel_agrees_with_its_eager_form(device: torch.device) -> None:
    errors = dict(selftest.compare(device, DTYPE))
    assert list(errors) == [*selftest.CASES, *(() if INTERPRETED else selftest.FALLBACK)]
    assert {name: error for name, error in errors.items() if not float(error) <= selftest.TOLERANCE[DTYPE]} == {}


def test_a_wrong_result_a_wrong_gradient_and_a_crash_are_told(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, wrong: bool) -> torch.Tensor:
            ctx.wrong = wrong
            return x * 2

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
            return dy * (3 if ctx.wrong else 2), None

    doubled: Any = Doubled.apply

    def crash(make: object, backend: str) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("out of resources\nmore")

    cases: dict[str, selftest.Case] = {
        "result": lambda make, backend: (make(8) * (1.1 if backend == "triton" else 1.0),),
        "gradient": lambda make, backend: (doubled(make(8), backend == "triton"),),
        "nan": lambda make, backend: (make(8) * (float("nan") if backend == "triton" else 1.0),),
        "crash": crash,
        "right": lambda make, backend: (make(8) * 2,),
    }
    monkeypatch.setattr(selftest, "CASES", cases)
    found = dict(selftest.compare(device, torch.float32))
    assert float(found["result"]) == pytest.approx(0.1, rel=1e-4)
    assert float(found["gradient"]) == pytest.approx(0.5, rel=1e-4)
    assert found["nan"] == float("inf")
    assert found["crash"] == "RuntimeError: out of resources"
    assert found["right"] == 0.0
