"""Ranks started by real launchers find one another, also after a restart by torchrun."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.listeners import listeners, off_loopback

RANK = """
import sys
import torch
from torch import distributed
from fmscale.runtime.device import pick_device
from fmscale.runtime.group import connect, init_distributed
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import read_world

def refuse(*words):
    raise AssertionError("a pickle")

world = read_world()
if world.launcher == "mpirun":
    from mpi4py import MPI
    MPI.pickle.__init__(refuse, refuse)
store = connect(world, deadline=60)
names = HostWaits(store, world).barrier("hello", value=f"{world.launcher}{world.rank}", deadline=60)
if world.launcher == "torchrun" and world.attempt == 0 and world.rank == 1:
    sys.exit("start again")
init_distributed(world, store, device=pick_device(world, "cpu"))
value = torch.tensor(float(world.rank))
distributed.all_reduce(value)
if world.rank == 1:
    print(names, value.item())
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        (
            "torchrun",
            ["--rdzv-backend", "fmscale", "--max-restarts", "1", "--nproc-per-node", "2", "--no-python"],
        ),
        pytest.param("mpirun", ["-n", "2"], marks=pytest.mark.mpi),
    ],
)
def test_ranks_of_a_real_launcher_meet(launcher: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    start = [str(Path(sys.executable).with_name(launcher)), *words]
    out = subprocess.check_output([*start, sys.executable, str(tmp_path / "rank.py")], text=True, timeout=120)
    assert out == f"['{launcher}0', '{launcher}1'] 1.0\n"


@pytest.mark.mpi
def test_mpi_on_one_node_keeps_to_loopback() -> None:
    told = "\n".join(
        [
            "import os, signal",
            "from fmscale.runtime.mpi import import_mpi",
            "from fmscale.runtime.world import read_world",
            "import_mpi(read_world()).COMM_WORLD.Barrier()",
            "os.write(1, b'met\\n')",
            "signal.pause()",
        ]
    )
    start = [str(Path(sys.executable).with_name("mpirun")), "-n", "2", sys.executable, "-c", told]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["met\n"] * 2
        found = listeners(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert found
    assert off_loopback(found) == {}
