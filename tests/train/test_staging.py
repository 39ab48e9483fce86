"""Inputs of a step go to the device in one copy, from two buffers in turn."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fmscale.objectives.protocol import Inputs
from fmscale.train.staging import ALIGNMENT, Staging


def inputs(seed: int, rows: int = 3) -> Inputs:
    """Inputs of a forward as collate makes them: slices that are not contiguous, several types, an empty tensor."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 99, (rows, 9), generator=draw)
    tensors = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "kept": tokens[:, 0] > 50, "none": tokens[:0, 0]}
    bounds = torch.arange(rows + 1, dtype=torch.int32) * 8
    return Inputs(tensors=tensors, weights=torch.rand(rows, 8, generator=draw), source=tokens[:, 1], bounds=bounds)


def flat(one: Inputs) -> dict[str, Tensor]:
    """All tensors by name."""
    return {**one.tensors, "weights": one.weights, "source": one.source, "bounds": one.bounds}


class Copies(TorchDispatchMode):
    """Counts copies from the host to the meta device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [one for one in args if isinstance(one, Tensor) and one.device.type == "cpu"]
        self.count += bool(given) and isinstance(out, Tensor) and out.device.type == "meta"
        return out


def test_a_step_is_one_copy() -> None:
    """Two forwards of seven tensors each were fourteen."""
    host = [inputs(1), inputs(2, rows=5)]
    with Copies() as one_by_one:
        for each in host:
            each.to("meta")
    with Copies() as staged:
        moved = Staging("meta").move(host)
    assert (one_by_one.count, staged.count) == (14, 1)
    for before, after in zip(map(flat, host), map(flat, moved), strict=True):
        assert {name: (x.shape, x.dtype) for name, x in after.items()} == {
            name: (x.shape, x.dtype) for name, x in before.items()
        }
        assert all(x.is_contiguous() for x in after.values())


def test_a_cpu_copies_nothing_but_what_is_not_contiguous() -> None:
    host = inputs(1)
    [moved] = Staging("cpu").move([host])
    assert moved.weights.data_ptr() == host.weights.data_ptr()
    assert moved.tensors["tokens"].is_contiguous()


class Kept(Staging):
    """A device whose copies have not begun when the next step is staged."""

    def __init__(self) -> None:
        super().__init__("another")
        self.packed: list[Tensor] = []

    def copy(self, packed: Tensor) -> Tensor:
        self.packed.append(packed)
        return packed


def test_the_next_step_does_not_overwrite_the_bytes_that_are_on_their_way() -> None:
    staging = Kept()
    steps = [[inputs(seed), inputs(seed + 1, rows=4)] for seed in (1, 11, 21)]
    moved = []
    for number, host in enumerate(steps):
        moved.append(staging.move(host))
        for late in range(max(0, number - 1), number + 1):
            for before, after in zip(steps[late], moved[late], strict=True):
                for name, tensor in flat(after).items():
                    assert torch.equal(tensor, flat(before)[name]), (number, late, name)
                    assert tensor.storage_offset() * tensor.element_size() % ALIGNMENT == 0
    first, second, third = (one.data_ptr() for one in staging.packed)
    assert first == third != second


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: pinned memory and its copies")
def test_the_host_waits_for_nothing_on_a_gpu() -> None:
    """By CUDA's own check; a copy from pageable memory waits."""
    staging = Staging("cuda")
    staging.move([inputs(1)])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            moved = [staging.move([inputs(seed)]) for seed in (2, 3)]
        assert waits == []
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for seed, [one] in zip((2, 3), moved, strict=True):
        assert all(torch.equal(x.cpu(), flat(inputs(seed))[name]) for name, x in flat(one).items())
