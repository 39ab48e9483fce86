"""The session of a rank, made before the model: its place, its device, the other ranks, the store, the lease."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import distributed

from fmscale.checkpoint.format.names import run_log
from fmscale.config import Config
from fmscale.runtime import variables
from fmscale.runtime.axes import Axis, axes_of, with_groups
from fmscale.runtime.device import check_places, device_place, pick_device
from fmscale.runtime.failure import Whereabouts, clear_failure, recorded
from fmscale.runtime.group import allow_open_files, connect, init_distributed
from fmscale.runtime.peers import identity
from fmscale.runtime.placement import settle
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.watchdog import Watchdog
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store
from fmscale.store.tiers.tier import Tier
from fmscale.train.run_folder import check_folder, run_folder
from fmscale.train.same_config import config_digest, refuse_other_configs


@dataclass(frozen=True, kw_only=True)
class Session:
    """One rank's share of a running job."""

    config: Config
    world: World
    dp: Axis
    """Place of this process among the data-parallel ranks."""
    waits: HostWaits
    """Named waits for the other ranks."""
    device: str
    backend: Backend
    stop: StopFlag
    """Stop signals and the deadline of the job."""
    where: Whereabouts
    """Phase and step, for the failure report."""
    watchdog: Watchdog
    """Thread that looks after the ranks, and ends this rank if it hangs after another's failure."""
    folder: Path
    """Metrics, delivery records and error.json, on this machine."""
    tiers: Sequence[Tier] = ()
    """Sources of chunks that loaders and restores ask before the store."""

    def lease(self) -> int:
        """Take the run's lease on rank 0, and return its number on all ranks. From then on an older job of this run,
        such as a requeued job that still hangs somewhere, cannot write to the run.
        """
        if self.world.rank == 0:
            owner = f"{socket.gethostname()}:{os.getpid()}"
            lease = acquire(run_log(self.backend, self.config.train.run), owner).number
            self.waits.arrive("lease", str(lease))
        return int(self.waits.wait("lease", ranks=[0], stop=self.stop)[0])

    def all_open(self) -> None:
        """Wait until all ranks have opened what is theirs: the engine's collectives wait without a name, deaf to
        signals, for a rank that does not come. Raises RankError.
        """
        self.waits.barrier("opening the data", deadline=self.config.train.comm_seconds, stop=self.stop)

    def from_rank_0(self, name: str, number: int, stop: StopFlag | None = None) -> int:
        """Wait for all ranks at `name`, and return the number of rank 0. Raises RankError, also after a `stop`: give it
        where there is nothing to save.
        """
        return int(self.waits.barrier(name, value=str(number), stop=stop)[0])


def meet(config: Config, world: World, where: Whereabouts, stack: ExitStack) -> Session:
    """Connect the ranks; `stack` disconnects them.

    Every check that can fail on a single rank comes after the meeting: from then on a failure ends the waits of the
    other ranks. Raises RankError if the ranks do not meet, ConfigError if their configs differ, another FmscaleError
    if this machine lacks something.
    """
    where.phase = "meeting"
    stop = StopFlag(config.train.seconds).install(alone=world.launcher == "none")
    stack.callback(stop.remove)
    stack.callback(variables.take_back)
    allow_open_files()
    store = connect(world, stop=stop)
    waits, folder, seconds = HostWaits(store, world), run_folder(config), config.train.comm_seconds
    watchdog = Watchdog(store, world, where, folder, stop, limit=seconds)
    stack.callback(watchdog.close)
    own = json.dumps([identity(), config_digest(config)])
    met = [json.loads(value) for value in waits.barrier("meeting", value=own, deadline=seconds, stop=stop)]
    watchdog.start([name for name, _ in met])
    with recorded(folder, world, where, waits):
        if world.rank == 0:
            check_folder(config)
            # All ranks wait for this, so an error.json in the folder is from an earlier attempt.
            clear_failure(folder)
            waits.arrive("the run's folder")
        waits.wait("the run's folder", ranks=[0], stop=stop)
        refuse_other_configs(config, [digest for _, digest in met], waits, seconds)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        device = pick_device(world, config.train.device)
        places = waits.barrier("devices", value=json.dumps(device_place(device)), deadline=seconds, stop=stop)
        check_places([tuple(json.loads(place)) for place in places])
        settle(device)
        if not distributed.is_initialized():
            stack.callback(_leave)
        init_distributed(world, store, device=device, deadline=seconds, folder=folder)
        dp = with_groups(world, axes_of(world))["dp"]
        backend = open_store(config.store.url, deadline=config.store.deadline)
    return Session(
        config=replace(config, train=config.train.on(device)),
        world=world,
        dp=dp,
        waits=waits,
        device=device,
        backend=backend,
        stop=stop,
        where=where,
        watchdog=watchdog,
        folder=folder,
    )


def _leave() -> None:
    """Destroy the process group, after DeepSpeed's references to it, which a next run in this process would use."""
    if not distributed.is_initialized():
        return
    # No import here: it takes seconds and prints warnings, above the error of a run that ended early.
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        distributed.destroy_process_group()
