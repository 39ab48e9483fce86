"""MPI of the ranks that an mpirun started."""

import os
from typing import Any

from fmscale.runtime.world import World

FABRIC = "UCX_NET_DEVICES"
"""Devices that the fabric of MPICH's wheels listens on, read when MPI is initialised. Without this variable each rank
listens at the host's address until it ends."""


def import_mpi(world: World) -> Any:
    """mpi4py's MPI, initialised; on one node it uses loopback only. Raises ImportError or RuntimeError of mpi4py."""
    before = os.environ.get(FABRIC)
    if world.on_one_node:
        os.environ[FABRIC] = "lo"
    try:
        from mpi4py import MPI
    finally:
        os.environ.pop(FABRIC, None)
        if before is not None:
            os.environ[FABRIC] = before
    return MPI
