"""The two limits of the device, measured first: copy bandwidth and a bf16 matrix product."""

from dataclasses import dataclass

import torch

from benchmarks.kernels.timing import Clock, interleave


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Limits of the device."""

    copy: float
    """TB/s, bytes read and written, of a device-to-device copy."""
    matmul: float
    """TFLOP/s of a square product in bf16 with random data."""


def measure_ceilings(
    device: torch.device, clock: Clock, *, copy_bytes: int = 2**31, side: int = 8192, repeats: int = 20
) -> Ceilings:
    """Measure both limits, on random data: zeros draw less power than training data and let the device clock higher."""
    source = torch.randint(0, 255, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    times, failed = interleave(
        {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b, out=product)},
        clock, repeats=repeats,
    )  # fmt: skip
    assert not failed, f"the device cannot copy or multiply: {failed}"
    return Ceilings(
        copy=2 * copy_bytes / times["copy"].median / 1e12, matmul=2 * side**3 / times["matmul"].median / 1e12
    )
