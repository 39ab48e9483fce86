"""Gather: all ranks' rows in order, and in backward the sum of all ranks' gradients of one's own rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fmscale.runtime.axes import Axis
from fmscale.train.engine.gather import gather_over
from tests.helpers.ranks import run_ranks


def own_rows(rank: int, counts: tuple[int, ...]) -> Tensor:
    """Rows [rows, 2, 3] that no other rank has."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand((sum(counts), 2, 3), dtype=torch.float64, generator=generator)
    return rows[sum(counts[:rank]) :][: counts[rank]].clone()


def weights_of(rank: int, rows: int) -> Tensor:
    """Another loss on each rank."""
    return torch.rand((rows, 2, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(1 + rank))


def gathered(rank: int, size: int, counts: tuple[int, ...]) -> Any:
    gather = gather_over(Axis(rank=rank, size=size))
    rows = own_rows(rank, counts).requires_grad_()
    everyone = gather(rows)
    (everyone.square() * weights_of(rank, len(everyone))).sum().backward()
    return everyone.detach(), rows.grad


@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 0, 1)])
def test_rows_come_in_the_order_of_ranks_and_gradients_of_all_ranks_come_back(counts: tuple[int, ...]) -> None:
    rows = torch.cat([own_rows(rank, counts) for rank in range(3)]).requires_grad_()
    total = sum((rows.square() * weights_of(rank, len(rows))).sum() for rank in range(3))
    assert isinstance(total, Tensor)
    [wanted] = torch.autograd.grad(total, rows)
    found = run_ranks(gathered, 3, counts)
    assert all(torch.equal(everyone, rows) for everyone, _ in found)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), wanted)


def test_a_single_rank_gets_its_own_tensor() -> None:
    rows = torch.ones(2)
    assert gather_over(Axis())(rows) is rows
