"""Brings the ranks together: a key-value store on the host first, torch.distributed when it is needed.

Ports listen on loopback alone if all ranks are on this node, else at MASTER_ADDR alone.
"""

import importlib.util
import json
import logging
import os
import resource
import socket
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fmscale.errors import ConfigError, RankError
from fmscale.runtime import variables
from fmscale.runtime.mpi import import_mpi
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.tcp_store import LOOPBACK, refuse_name, serve_store, warn_of_loopback
from fmscale.runtime.waits import LONGEST_PAUSE, NOTICE_SECONDS, STOP_SECONDS, told_to_stop
from fmscale.runtime.world import World

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0


def allow_open_files() -> int:
    """Raise this process's limit of open files to the limit that the system allows, and return it: at 512 ranks gloo
    alone may open 511 sockets a group, and the usual limit is 1,024.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def connect(world: World, *, deadline: float = 300.0, stop: StopFlag | None = None) -> "Store":
    """A key-value store that all ranks of the run share, for `HostWaits` and `init_distributed`.

    Rank 0 serves the store at `world.master`, or at that port of loopback if all ranks are on one node, unless the
    launcher serves it. A single process keeps the store in its own memory and opens no port.
    Raises ConfigError if the port is taken or the name of rank 0's node does not resolve, RankError if rank 0 is not
    reached within `deadline` seconds, or within STOP_SECONDS after `stop` was set.
    """
    from torch.distributed import HashStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore

    store: Store
    if world.world_size == 1 and not world.hosted:
        store = HashStore()
    elif world.master is None:
        store = _meet_over_mpi(world, deadline, stop)
    else:
        host, port = world.master
        if world.on_one_node and not world.hosted:
            host = LOOPBACK
        if world.rank or world.hosted:
            store = _reach(world, host, port, deadline, stop)
        else:
            if not world.on_one_node:
                warn_of_loopback(host)
            store = serve_store(host, port, deadline, meeting=world.meeting)
    return PrefixStore(f"fmscale/{world.attempt}", store)


def init_distributed(
    world: World, store: "Store", *, device: str, deadline: float = 600.0, folder: Path | None = None
) -> None:
    """Initialise torch.distributed over `store`, unless it is initialised: gloo on the host, and nccl on a GPU.

    `deadline` is the seconds after which a collective counts as hung; NCCL's flight recorder then writes to `folder`.
    Raises RankError if not all ranks join.
    """
    import torch
    from torch import cuda, distributed
    from torch.distributed.distributed_c10d import PrefixStore

    if distributed.is_initialized():
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        cuda.set_device(device)
    if world.on_one_node:
        # By default gloo and NCCL listen on a network and trust every peer. The kernel gives loopback the number 1
        # in every network namespace.
        loopback = socket.if_indextoname(1)
        variables.lend(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
    # gloo connects two ranks at their first message. By default it connects all ranks of every group, and DeepSpeed
    # clones the group of all ranks: 1,022 sockets a rank at 512 ranks, of which a GPU run uses those of a ring.
    defaults = {"TORCH_GLOO_LAZY_INIT": "1"}
    if folder is not None and on_gpu:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        # The default folder is of the home, where runs and nodes overwrite one another's records.
        defaults["TORCH_FR_DUMP_TEMP_FILE"] = str(folder / "flight-recorder-rank")
    variables.lend(**{name: value for name, value in defaults.items() if name not in os.environ})
    try:
        distributed.init_process_group(
            backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore("torch", store),
            rank=world.rank,
            world_size=world.world_size,
            timeout=timedelta(seconds=deadline),
            # NCCL then connects here, where errors are told, and splits the groups of DeepSpeed off.
            device_id=torch.device(device) if on_gpu and world.world_size > 1 else None,
        )
    except distributed.DistError as error:
        raise RankError(
            f"rank {world.rank} waited {deadline:.0f} s for all {world.world_size} ranks to join",
            found=str(error).splitlines()[0],
            remedy="Look at the logs of the other ranks: one did not start or cannot reach this one.",
        ) from error


def _reach(world: World, host: str, port: int, deadline: float, stop: StopFlag | None) -> "Store":
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    begin = noticed = time.monotonic()
    patience, reason = deadline, ""
    # TCPStore could wait by itself, but it logs nothing meanwhile, and no signal handler runs.
    while problem := _no_answer(host, port, begin):
        waited = time.monotonic() - begin
        if stop and not reason:
            reason = told_to_stop(stop)
            patience = min(patience, waited + STOP_SECONDS)
        if waited >= patience:
            raise _unreached(world, f"{host}:{port}: {problem}", f"{patience:.0f} s{reason}")
        if time.monotonic() - noticed >= NOTICE_SECONDS:
            noticed = time.monotonic()
            logger.warning("rank %d waits %.0f s for rank 0 at %s:%d: %s", world.rank, waited, host, port, problem)
        time.sleep(LONGEST_PAUSE)
    try:
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=deadline))
    except DistError as error:
        raise _unreached(world, f"{host}:{port}", f"{deadline:.0f} s") from error


def _no_answer(host: str, port: int, begin: float) -> str:
    """Reason why no process answers at the port; empty if a process listens. Raises ConfigError for a name that has not
    resolved for NAME_SECONDS since `begin`.
    """
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        if isinstance(error, socket.gaierror):
            refuse_name(host, error, time.monotonic() - begin)
        return error.strerror or str(error)
    return ""


def _unreached(world: World, found: str, within: str) -> RankError:
    return RankError(
        f"rank {world.rank} on {socket.gethostname()} did not reach rank 0 within {within}",
        found=found,
        remedy="Check that rank 0 runs, and that MASTER_ADDR is an address this node can reach.",
    )


def _meet_over_mpi(world: World, deadline: float, stop: StopFlag | None) -> "Store":
    """Open any free port on rank 0, and tell the other ranks over MPI."""
    if importlib.util.find_spec("mpi4py") is None:
        raise ConfigError(
            "mpirun starts ranks without a place to meet",
            found="neither MASTER_ADDR nor mpi4py",
            remedy="Set MASTER_ADDR and MASTER_PORT, or pip install 'fmscale[mpi]'.",
        )
    MPI = import_mpi(world)
    # Sent as bytes, because mpi4py would send an object as a pickle.
    message = bytearray(512)
    if world.rank:
        MPI.COMM_WORLD.Bcast([message, MPI.BYTE])
        host, port = json.loads(message.rstrip(b"\0"))
        return _reach(world, host, port, deadline, stop)
    host = LOOPBACK
    if not world.on_one_node:
        host = socket.gethostbyname(socket.gethostname())
        warn_of_loopback(host)
    store = serve_store(host, 0, deadline)
    text = json.dumps([host, store.port]).encode()
    message[: len(text)] = text
    MPI.COMM_WORLD.Bcast([message, MPI.BYTE])
    return store
