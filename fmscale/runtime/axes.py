"""Axes of ranks: a run's ranks as a grid, whose axes each spread one kind of work.

`dp`, data parallelism, is the only axis today: the ranks along it get different samples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fmscale.errors import ConfigError
from fmscale.runtime.world import World

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Axis:
    """This process's place among the ranks that differ from it along one axis alone."""

    rank: int = 0
    """Place along the axis, 0 <= rank < size."""
    size: int = 1
    """Ranks along the axis."""
    group: "ProcessGroup | None" = None
    """Their group; None for the default group, which has all ranks of the run."""
    first: bool = True
    """True if this process is the first on all other axes: it speaks for the ranks that share its place."""


def axes_of(world: World, sizes: Mapping[str, int] | None = None) -> dict[str, Axis]:
    """Place of this process on each axis, without groups. `sizes` are the axes' sizes, by default `dp` with all ranks;
    ranks fill the grid with the last axis fastest. Raises ConfigError unless the grid has a place for each rank.
    """
    sizes = sizes or {"dp": world.world_size}
    if math.prod(sizes.values()) != world.world_size:
        raise ConfigError(
            "the axes of ranks do not multiply to the run's ranks",
            found={**sizes, "ranks": world.world_size},
            remedy="Change the axes' sizes, or start as many ranks as their product.",
        )
    places, rest = {}, world.rank
    for name, size in reversed(list(sizes.items())):
        rest, places[name] = divmod(rest, size)
    elsewhere = sum(places.values())
    return {name: Axis(rank=places[name], size=size, first=elsewhere == places[name]) for name, size in sizes.items()}


def with_groups(world: World, axes: Mapping[str, Axis]) -> dict[str, Axis]:
    """The axes with their groups of torch.distributed, which must be initialised. All ranks call this together."""
    import numpy as np
    from torch import distributed

    found = dict(axes)
    grid = np.arange(world.world_size).reshape([axis.size for axis in axes.values()])
    for number, (name, axis) in enumerate(axes.items()):
        if axis.size < world.world_size:
            # Every rank makes every group, in the same order, as new_group demands.
            for ranks in np.moveaxis(grid, number, -1).reshape(-1, axis.size).tolist():
                group = distributed.new_group(ranks)
                if world.rank in ranks:
                    found[name] = replace(axis, group=group)
    return found
