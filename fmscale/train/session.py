"""What a rank has before it builds anything: its place, its device, the other ranks, the store, the lease."""

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from fmscale.config import Config
from fmscale.runtime.device import pick_device
from fmscale.runtime.failure import Whereabouts, clear_failure
from fmscale.runtime.group import connect, init_distributed
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.store.backend import Backend
from fmscale.store.lease import acquire
from fmscale.store.log import RUN_KINDS, Log
from fmscale.store.open import open_store


@dataclass(frozen=True, kw_only=True)
class Session:
    """One rank's share of a running job."""

    config: Config
    """What the run is told."""
    world: World
    """This process's place."""
    waits: HostWaits
    """Named waits for the other ranks."""
    device: str
    """Where this rank computes."""
    backend: Backend
    """The store."""
    stop: StopFlag
    """Signals and the deadline."""
    where: Whereabouts
    """For the failure report."""
    folder: Path
    """Metrics, delivery records and error.json, on this machine."""

    def lease(self) -> int:
        """Epoch of the run's lease, taken by rank 0 for all: from now on an older job of this run, such as a
        requeued one that still hangs somewhere, cannot write to the run any more.
        """
        if self.world.rank == 0:
            owner = f"{socket.gethostname()}:{os.getpid()}"
            epoch = acquire(Log(self.backend, f"runs/{self.config.train.run}", RUN_KINDS), owner).epoch
            self.waits.arrive("lease", str(epoch))
        return int(self.waits.wait("lease", ranks=[0])[0])


def run_folder(config: Config) -> Path:
    """The run's folder on this machine."""
    return Path(config.train.folder) / config.train.run


def meet(config: Config, world: World, where: Whereabouts, stack: ExitStack) -> Session:
    """Bring the ranks together; what must be undone at the end is put on `stack`."""
    where.phase = "meeting"
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = pick_device(world, config.train.device)
    stop = StopFlag(config.train.seconds).install()
    stack.callback(stop.remove)
    folder = run_folder(config)
    if world.rank == 0:
        clear_failure(folder)
    store = connect(world)
    waits = HostWaits(store, world)
    if not distributed.is_initialized():
        stack.callback(_leave)
    init_distributed(world, store, device=device, deadline=config.train.comm_seconds)
    return Session(
        config=config,
        world=world,
        waits=waits,
        device=device,
        backend=open_store(config.store.url, deadline=config.store.deadline),
        stop=stop,
        where=where,
        folder=folder,
    )


def _leave() -> None:
    """Take the process group apart, DeepSpeed's references to it first: a next run in this process makes its
    own, and DeepSpeed would go on using the old one.
    """
    if not distributed.is_initialized():
        return
    import deepspeed

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        distributed.destroy_process_group()
