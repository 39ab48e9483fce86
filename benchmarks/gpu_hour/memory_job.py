"""Step 4: pages of a snapshot's memory, with and without huge pages: their allocation, their registration with CUDA,
copies from the device to them, and a kernel behind a registration that CUDA refuses.

python -m benchmarks.gpu_hour.memory_job --device cuda --mib 4096
"""

import argparse
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_hour.emit import emit

COPIES = 5
ALREADY_REGISTERED = 712
"""CUDA's error for pages that are registered (cudaErrorHostMemoryAlreadyRegistered)."""


def main() -> None:
    """Emit a record for each kind of pages, at once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--mib", type=int, required=True)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    source = torch.ones(min(asked.mib, 1024) << 20, dtype=torch.uint8, device=device)
    for huge in (False, True):
        emit(sys.stdout, about="pages", huge=huge, mib=asked.mib, **pages(asked.mib << 20, source, huge=huge))


def pages(size: int, source: torch.Tensor, *, huge: bool) -> dict[str, Any]:
    """Figures of a memfd of `size` bytes. Without CUDA nothing is registered."""
    descriptor = os.memfd_create("fmscale-gpu-hour")
    os.ftruncate(descriptor, size)
    with mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED) as memory:
        os.close(descriptor)
        advised = ""
        if huge:
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:
                advised = str(error)
        return {"refused": advised, **used(torch.frombuffer(memory, dtype=torch.uint8), source)}


def used(target: torch.Tensor, source: torch.Tensor) -> dict[str, Any]:
    """Figures of fresh memory."""
    copy = partial(copy_rate, target, source)
    found: dict[str, Any] = {"allocate_seconds": seconds(lambda: target.fill_(0))}
    found["pageable_gb_per_second"] = copy()
    return found | (registered(target, copy) if source.is_cuda else {})


def registered(target: torch.Tensor, copy: Callable[[], float]) -> dict[str, Any]:
    """Registration, the copies' rate, a second registration, and the next kernel's error."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    began = time.perf_counter()
    error = int(runtime.cudaHostRegister(target.data_ptr(), target.numel(), 0))
    found: dict[str, Any] = {"register_error": error, "register_seconds": time.perf_counter() - began}
    if error:
        return found
    try:
        found["registered_gb_per_second"] = copy()
        found["second_error"] = int(runtime.cudaHostRegister(target.data_ptr(), target.numel(), 0))
        try:
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
            found["next_kernel"] = ""
        except RuntimeError as poisoned:
            found["next_kernel"] = str(poisoned)
    finally:
        runtime.cudaHostUnregister(target.data_ptr())
    return found


def copy_rate(target: torch.Tensor, source: torch.Tensor) -> float:
    """GB/s of copies from `source`, median."""
    part = target[: source.numel()]
    runs = [seconds(lambda: part.copy_(source, non_blocking=True), on_gpu=source.is_cuda) for _ in range(COPIES)]
    return source.numel() / statistics.median(runs) / 1e9


def seconds(call: Callable[[], object], *, on_gpu: bool = False) -> float:
    """Wall time of a call, with its work on the device."""
    began = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
