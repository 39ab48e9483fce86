"""A stand-in for `fmscale train`: ranks meet and add their numbers, then wait for a stop with `wait`.

    rank.py FOLDER [meet] [fail=RANK] [wait] [deaf]

Each rank writes its observations to FOLDER/rank-N.json. `wait` ends with SIGUSR1 or SIGTERM; the file `ready-N` marks
its begin.
"""

import json
import os
import sys
import time
from pathlib import Path

from fmscale.runtime.failure import Whereabouts, recorded
from fmscale.runtime.stop import StopFlag, ignore_stop_signals
from fmscale.runtime.world import World, read_world


def total(world: World) -> float:
    """The sum of the ranks' numbers plus one, by an all-reduce; the ranks stay together."""
    import torch
    from torch import distributed

    from fmscale.runtime.group import connect, init_distributed

    init_distributed(world, connect(world, deadline=60), device="cpu", deadline=60)
    value = torch.tensor(world.rank + 1.0)
    distributed.all_reduce(value)
    return value.item()


def main(folder: Path, tasks: list[str]) -> None:
    """One rank."""
    flag = StopFlag().install()
    world = read_world()
    names = ("OMP_NUM_THREADS", "NCCL_DEBUG", "EXTRA")
    seen: dict[str, object] = {
        "world": (world.launcher, world.rank, world.world_size, world.local_rank, world.node),
        "environment": {name: os.environ.get(name) for name in names},
        "folder": os.getcwd(),
        "arguments": tasks,
    }
    with recorded(folder, world, Whereabouts(phase="stand-in")):
        if "meet" in tasks:
            seen["total"] = total(world)
        if f"fail={world.rank}" in tasks:
            raise ValueError("told to fail")
    if "deaf" in tasks:
        flag.remove()
        ignore_stop_signals()
    if "wait" in tasks or "deaf" in tasks:
        (folder / f"ready-{world.rank}").touch()
        deadline = time.monotonic() + 120
        while not flag:
            time.sleep(0.05)
            assert time.monotonic() < deadline
        seen["stop"] = flag.reason.name
    flag.remove()  # like a run: at its end Python would restore SIGUSR1's default, which kills
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
