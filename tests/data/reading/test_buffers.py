"""Batch buffers: reused only without references, and then really reused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fmscale.data.reading.arena import BufferPool


def make_pool() -> BufferPool:
    return BufferPool(np.dtype("uint16"), 5)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


HOLDERS: list[Callable[[torch.Tensor], object]] = [
    lambda tensor: tensor,
    lambda tensor: tensor[1, 2:],
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor.view(-1)[3],
    lambda tensor: tensor.untyped_storage(),
    lambda tensor: {"batch": [tensor.t()]},
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_what_is_referred_to_is_not_written_over(hold: Callable[[torch.Tensor], object]) -> None:
    pool = make_pool()
    buffer = pool.take(3)
    buffer[:] = 7
    tensor = torch.from_numpy(buffer)
    kept = address(buffer)
    held = hold(tensor)
    del buffer, tensor
    others = [pool.take(3) for _ in range(3)]
    assert kept not in [address(other) for other in others]
    for other in others:
        other[:] = 9
    del others, other, held
    assert kept in {address(pool.take(3)) for _ in range(1)}


def test_a_batch_that_was_dropped_gives_its_memory_to_the_next() -> None:
    pool = make_pool()
    addresses = set()
    for _ in range(10):
        tensor = torch.from_numpy(pool.take(3))
        addresses.add(tensor.data_ptr())
        del tensor
    assert len(addresses) == 1
    kept = [torch.from_numpy(pool.take(3)) for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in kept}) == 4


def test_buffers_have_the_rows_that_were_asked_for() -> None:
    pool = make_pool()
    small = pool.take(2)
    large = pool.take(6)
    assert small.shape == (2, 5)
    assert small.dtype == np.int64
    assert large.shape == (6, 5)
    large[:] = 1
    assert address(small) != address(large)
    del small, large
    assert pool.take(2).shape == (2, 5)
    assert pool.take(6).shape == (6, 5)


def test_the_narrow_buffer_stays_the_same_memory() -> None:
    pool = make_pool()
    first = pool.narrow(3)
    assert first.shape == (3, 5)
    assert first.dtype == np.uint16
    assert pool.narrow(3) is first
    assert pool.narrow(4).shape == (4, 5)
