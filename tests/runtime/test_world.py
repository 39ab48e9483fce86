"""Every launcher's environment, and ambiguous environments."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import ConfigError
from fmscale.runtime.world import World, read_world

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
DEEPSPEED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "4",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
AGENT = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "1",
}
SRUN = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}
MASTER = {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}
PLACE: dict[str, Any] = {
    "rank": 5,
    "world_size": 8,
    "local_rank": 1,
    "local_size": 4,
    "node": 1,
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World()),
        (MASTER, World()),
        (
            TORCHRUN,
            World(**PLACE, launcher="torchrun", master=("gpu1", 29500), hosted=True, attempt=2),
        ),
        (DEEPSPEED, World(**PLACE, launcher="torchrun", master=("gpu1", 29500))),
        # our own agent, in a job of Slurm
        (
            SRUN | AGENT | {"FMSCALE_MEETING": "4"},
            World(local_size=2, world_size=2, launcher="torchrun", master=("127.0.0.1", 29500), meeting=4, attempt=1),
        ),
        (
            AGENT | {"FMSCALE_MEETING": ""},
            World(local_size=2, world_size=2, launcher="torchrun", master=("127.0.0.1", 29500), attempt=1),
        ),
        (OPEN_MPI, World(**PLACE, launcher="mpirun")),
        (OPEN_MPI | MASTER, World(**PLACE, launcher="mpirun", master=("head", 4000))),
        (MPICH, World(**PLACE, launcher="mpirun")),
        (SRUN, World(**PLACE, launcher="srun", master=("gpu007", 20073))),
        (SRUN | MASTER, World(**PLACE, launcher="srun", master=("head", 4000))),
        # srun --mpi=pmi2 sets the same numbers twice
        (
            SRUN | {"PMI_RANK": "5", "PMI_SIZE": "8"},
            World(**PLACE, launcher="srun", master=("gpu007", 20073)),
        ),
        # a script that copies Open MPI's numbers for torch
        (
            OPEN_MPI
            | {k: v for k, v in TORCHRUN.items() if k[:5] not in ("TORCH", "GROUP")}
            | {"LOCAL_WORLD_SIZE": "4"},
            World(**PLACE, launcher="torchrun", master=("gpu1", 29500)),
        ),
    ],
)
def test_each_launcher(environ: dict[str, str], expected: World) -> None:
    assert read_world(environ) == expected


@pytest.mark.parametrize("outer", [SRUN, OPEN_MPI, MPICH])
@pytest.mark.parametrize("inner", [TORCHRUN, DEEPSPEED])
def test_an_inner_launcher_hides_the_one_that_started_it(outer: dict[str, str], inner: dict[str, str]) -> None:
    other_place = {name: "0" for name in outer if "RANK" in name or "ID" in name}
    assert read_world(outer | other_place | inner) == read_world(inner)


@pytest.mark.parametrize("inner", [OPEN_MPI, MPICH])
def test_mpirun_hides_srun(inner: dict[str, str]) -> None:
    assert read_world(SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"} | inner) == read_world(inner)


def test_a_batch_script_is_no_step() -> None:
    batch = {name: value for name, value in SRUN.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    world = read_world(batch)
    assert (world.world_size, world.launcher) == (1, "none")
    assert "8 tasks" in world.notice


def test_nodes_of_different_sizes() -> None:
    environ = SRUN | {
        "SLURM_STEP_TASKS_PER_NODE": "3,2(x2),1",
        "SLURM_NODEID": "3",
        "SLURM_PROCID": "7",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "a,b[1-3]",
    }
    world = read_world(environ)
    assert (world.local_size, world.node) == (1, 3)
    assert world.master == ("a", 20073)


@pytest.mark.parametrize("environ", [TORCHRUN, DEEPSPEED, OPEN_MPI, MPICH])
def test_half_of_an_environment_is_refused_by_name(environ: dict[str, str]) -> None:
    telling = [name for name in environ if "RANK" in name or "SIZE" in name][:3]
    for name in telling:
        with pytest.raises(ConfigError, match="has half of what") as caught:
            read_world({key: value for key, value in environ.items() if key != name})
        assert f"{name} not set" in caught.value.cause
        assert set(caught.value.found) < set(environ) | {"LOCAL_WORLD_SIZE"}  # type: ignore[call-overload]
        assert "Unset them to run alone" in caught.value.remedy


@pytest.mark.parametrize(
    ("environ", "cause", "found"),
    [
        (SRUN | MPICH | {"PMI_RANK": "4"} | OPEN_MPI, "Open MPI's mpirun and of MPICH's", "PMI_RANK"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | OPEN_MPI,
            "torchrun or deepspeed and of Open MPI's mpirun disagree",
            "OMPI_COMM_WORLD_RANK",
        ),
        (SRUN | {"PMI_RANK": "4", "PMI_SIZE": "8"}, "srun and of MPICH's mpirun disagree", "SLURM_PROCID"),
        (TORCHRUN | {"RANK": "8"}, "torchrun or deepspeed contradict one another", "RANK"),
        (MPICH | {"MPI_LOCALRANKID": "4"}, "MPICH's mpirun contradict", "MPI_LOCALRANKID"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, "contradict", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        (TORCHRUN | {"RANK": "-1"}, "RANK must be a whole number", "-1"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT must be a whole number", "http"),
        (SRUN | {"SLURM_NODEID": "2"}, "SLURM_STEP_TASKS_PER_NODE contradict", "SLURM_NODEID"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "four"}, "SLURM_STEP_TASKS_PER_NODE is not understood", "four"),
        (SRUN | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not understood", ""),
        (MPICH | {"MASTER_ADDR": "head"}, "MASTER_ADDR and MASTER_PORT", "MASTER_ADDR"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_by_name(environ: dict[str, str], cause: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_world(environ)
    assert cause in caught.value.cause
    assert found in str(caught.value.found)


def test_torchrun_without_a_meeting_point() -> None:
    environ = {key: value for key, value in TORCHRUN.items() if not key.startswith("MASTER")}
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT"):
        read_world(environ)


@pytest.mark.mpi
def test_what_a_real_mpirun_sets(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from fmscale.runtime.world import read_world;"
        "w = read_world(); Path(sys.argv[1], f'{w.rank}.json').write_text(json.dumps(vars(w)))"
    )
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", "3"]
    subprocess.run([*mpirun, sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    worlds = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [(w["rank"], w["local_rank"], w["world_size"], w["local_size"]) for w in worlds] == [
        (rank, rank, 3, 3) for rank in range(3)
    ]
    assert {(w["launcher"], w["node"]) for w in worlds} == {("mpirun", 0)}
