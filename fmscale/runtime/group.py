"""Brings the ranks together: a key-value store on the host first, torch.distributed when it is needed."""

import importlib.util
import logging
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from fmscale.errors import ConfigError, RankError
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import LONGEST_PAUSE, NOTICE_SECONDS, STOP_SECONDS, told_to_stop
from fmscale.runtime.world import World

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 5.0


def connect(world: World, *, deadline: float = 300.0, stop: StopFlag | None = None) -> "Store":
    """A key-value store that all ranks of the run share, for `HostWaits` and `init_distributed`.

    Rank 0 serves it at `world.master`, unless the launcher does; a process alone gets one of its own.
    Raises ConfigError if the port is taken, RankError if rank 0 is not reached within `deadline` seconds, or within
    STOP_SECONDS after `stop` was set.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    store: Store
    if world.world_size == 1 and not world.hosted:
        store = _serve(LOOPBACK, 0, deadline)
    elif world.master is None:
        store = _meet_over_mpi(world, deadline, stop)
    elif world.rank == 0 and not world.hosted:
        store = _serve(*world.master, deadline)
    else:
        store = _reach(world, *world.master, deadline, stop)
    return PrefixStore(f"fmscale/{world.attempt}", store)


def init_distributed(world: World, store: "Store", *, device: str, deadline: float = 600.0) -> None:
    """Initialise torch.distributed over `store`, unless it is: gloo on the host, and nccl on a GPU.

    `deadline` is the seconds after which a collective counts as hung. Raises RankError if not all ranks come.
    """
    from torch import cuda, distributed
    from torch.distributed.distributed_c10d import PrefixStore

    if distributed.is_initialized():
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        cuda.set_device(device)
    try:
        distributed.init_process_group(
            backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore("torch", store),
            rank=world.rank,
            world_size=world.world_size,
            timeout=timedelta(seconds=deadline),
        )
    except distributed.DistError as error:
        raise RankError(
            f"rank {world.rank} waited {deadline:.0f} s for all {world.world_size} ranks to join",
            found=str(error).splitlines()[0],
            remedy="Look at the logs of the other ranks: one did not start or cannot reach this one.",
        ) from error


def _serve(host: str, port: int, deadline: float) -> "TCPStore":
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    try:
        return TCPStore(
            host, port, is_master=True, timeout=timedelta(seconds=deadline), wait_for_workers=False
        )
    except DistError as error:
        raise ConfigError(
            "Rank 0 cannot open the port where the ranks meet",
            found=f"{host}:{port}",
            remedy="Set MASTER_PORT to a free one; another run may be using this.",
        ) from error


def _reach(world: World, host: str, port: int, deadline: float, stop: StopFlag | None) -> "Store":
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    begin = noticed = time.monotonic()
    patience, told = deadline, ""
    # TCPStore waits by itself too, but says nothing meanwhile, and no signal handler runs.
    while not _answers(host, port):
        waited = time.monotonic() - begin
        if stop and not told:
            told = told_to_stop(stop)
            patience = min(patience, waited + STOP_SECONDS)
        if waited >= patience:
            raise _unreached(world, host, port, f"{patience:.0f} s{told}")
        if time.monotonic() - noticed >= NOTICE_SECONDS:
            noticed = time.monotonic()
            logger.warning("rank %d waits %.0f s for rank 0 at %s:%d", world.rank, waited, host, port)
        time.sleep(LONGEST_PAUSE)
    try:
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=deadline))
    except DistError as error:
        raise _unreached(world, host, port, f"{deadline:.0f} s") from error


def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _unreached(world: World, host: str, port: int, within: str) -> RankError:
    return RankError(
        f"rank {world.rank} on {socket.gethostname()} did not reach rank 0 within {within}",
        found=f"{host}:{port}",
        remedy="Check that rank 0 runs, and that MASTER_ADDR is an address this node can reach.",
    )


def _meet_over_mpi(world: World, deadline: float, stop: StopFlag | None) -> "Store":
    """Rank 0 opens any free port and tells the others over MPI, which is there already."""
    if importlib.util.find_spec("mpi4py") is None:
        raise ConfigError(
            "mpirun starts ranks without a place to meet",
            found="neither MASTER_ADDR nor mpi4py",
            remedy="Set MASTER_ADDR and MASTER_PORT, or pip install 'fmscale[mpi]'.",
        )
    from mpi4py import MPI

    one_node = world.local_size == world.world_size
    if world.rank:
        host, port = MPI.COMM_WORLD.bcast(None)
        return _reach(world, host, port, deadline, stop)
    host = LOOPBACK if one_node else socket.gethostbyname(socket.gethostname())
    store = _serve(host, 0, deadline)
    MPI.COMM_WORLD.bcast((host, store.port))
    return store
