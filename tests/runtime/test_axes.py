"""Axes of ranks: their places and groups, for a grid with a second axis too."""

from typing import Any

import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.runtime.axes import Axis, axes_of, with_groups
from fmscale.runtime.collectives import total
from fmscale.runtime.world import World
from fmscale.train.engine.gather import gather_over
from tests.helpers.ranks import run_ranks

GRID = {"dp": 2, "cp": 2}


def test_all_ranks_are_data_parallel_by_default() -> None:
    assert axes_of(World(rank=3, world_size=8)) == {"dp": Axis(rank=3, size=8, group=None, first=True)}
    assert axes_of(World()) == {"dp": Axis()}


def test_a_second_axis_runs_faster_and_its_first_rank_speaks_for_the_place() -> None:
    places = [axes_of(World(rank=rank, world_size=6), {"dp": 3, "cp": 2}) for rank in range(6)]
    assert [(axes["dp"].rank, axes["cp"].rank) for axes in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [axes["dp"].first for axes in places] == [True, False] * 3
    assert [axes["cp"].first for axes in places] == [True, True, False, False, False, False]
    assert {(axes["dp"].size, axes["cp"].size) for axes in places} == {(3, 2)}


def test_axes_that_do_not_multiply_to_the_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not multiply") as caught:
        axes_of(World(world_size=6), GRID)
    assert caught.value.found == {**GRID, "ranks": 6}


def over_the_grid(rank: int, size: int) -> Any:
    """The callers of an axis on a 2 x 2 grid: sums and gathers along each axis."""
    world = World(rank=rank, world_size=size)
    axes = with_groups(world, axes_of(world, GRID))
    mine = torch.tensor([float(10**rank)])
    sums = {name: total(mine, axis).item() for name, axis in axes.items()}
    rows = mine.clone().requires_grad_()
    everyone = gather_over(axes["cp"])(rows)
    (everyone * (1 + rank)).sum().backward()
    assert rows.grad is not None
    for axis in axes.values():
        torch.distributed.destroy_process_group(axis.group)
    return sums, everyone.tolist(), rows.grad.item(), with_groups(world, axes_of(world))["dp"].group


def test_a_grid_of_two_axes_has_groups_along_each() -> None:
    ranks = run_ranks(over_the_grid, 4)
    assert [sums["dp"] for sums, *_ in ranks] == [101, 1010] * 2
    assert [sums["cp"] for sums, *_ in ranks] == [11] * 2 + [1100] * 2
    assert [everyone for _, everyone, *_ in ranks] == [[1, 10]] * 2 + [[100, 1000]] * 2
    assert [gradient for _, _, gradient, _ in ranks] == [3, 3, 7, 7]
    assert all(group is None for *_, group in ranks)
