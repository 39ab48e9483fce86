"""A config trained by every launcher and script, at several ZeRO stages: the same samples in the same order, and the
same losses, to the bit at the same stage.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmscale.train.compare import Comparison, compare, read_history
from tests.helpers.listeners import Place, off_loopback, other_interface
from tests.helpers.s3_server import free_ports
from tests.helpers.slurm import Slurm
from tests.helpers.ssh_hosts import SshHosts
from tests.launch.training import FMSCALE, LAUNCH, environment, prepare, started, watched

pytestmark = pytest.mark.slow

NAMED = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), other_interface())
"""An interface that the network reaches, as in a cluster's config: a run on one node must not use it."""

OTHER_SIZE = 1e-5
"""Relative difference of losses between one rank and two: fp32 sums in other groups differ by 1e-7 a step."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Place, set[str]]]:
    """A folder with run.yaml, its dataset, and the run `two` of two ranks by torchrun, which the others must equal; and
    the places where it listened, with another interface configured.
    """
    folder = tmp_path_factory.mktemp("same")
    prepare(folder)
    sets = ["train.run=two", "checkpoint.every=2", "--procs-per-node", "2"]
    found = watched([FMSCALE, "launch", "run.yaml", *sets], folder, **NAMED)
    (folder / "watched.log").rename(folder / "two.txt")
    return folder, found


@pytest.fixture(scope="module")
def folder(two: tuple[Path, dict[Place, set[str]]]) -> Path:
    """Folder of `two`."""
    return two[0]


@pytest.fixture
def port() -> str:
    return str(free_ports(1)[0])


def launched(folder: Path, run: str, *options: str, **more: str) -> str:
    """`fmscale launch` of the config under its own name."""
    return started([FMSCALE, "launch", "run.yaml", f"train.run={run}", *options], folder, **more)


def compared(folder: Path, run: str, tolerance: float = 0.0) -> Comparison:
    """The run beside `two`; it must be complete."""
    assert json.loads((folder / "runs" / run / "outcome.json").read_text())["complete"]
    histories = [read_history(folder / "runs" / name) for name in ("two", run)]
    found = compare(*histories, tolerance=tolerance)
    assert found.steps == 4
    return found


def assert_equal(folder: Path, run: str) -> None:
    """All samples, losses and gradient norms of the run are those of `two`, bit for bit, by two ranks."""
    found = compared(folder, run)
    assert (found.same, found.parts, found.only) == (True, {}, {}), found
    assert json.loads((folder / "runs" / run / "outcome.json").read_text())["world_size"] == 2
    assert found.order_hashes is not None
    assert len(set(found.order_hashes)) == 1


@contextmanager
def open_mpi(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which mpirun is Open MPI's, and fmscale is on the PATH."""
    program = shutil.which("mpirun.openmpi")
    if program is None:
        pytest.skip("needs Open MPI: apt-get install openmpi-bin")
    (tmp_path / "mpirun").symlink_to(program)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    yield {"PATH": f"{tmp_path}{os.pathsep}{environment()['PATH']}", **root}


def assert_close(folder: Path, run: str) -> None:
    """The same samples in the same order, and losses that differ by the grouping of sums."""
    found = compared(folder, run, OTHER_SIZE)
    assert found.same, found
    assert found.order_hashes is not None
    assert len(set(found.order_hashes)) == 1


def test_one_rank_says_what_the_run_is_and_a_pipe_gets_no_styles(folder: Path) -> None:
    lines = (folder / "two.txt").read_text().splitlines()
    assert lines[0] == "fmscale launch: torchrun: 1 node, 2 ranks"
    assert lines.count("ranks   2, ZeRO stage 2") == 1
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("\x1b" not in line and "\r" not in line for line in lines)


def assert_on_loopback(found: dict[Place, set[str]]) -> None:
    """Ranks listened, but at no address that the network reaches."""
    assert any("fmscale train" in command for commands in found.values() for command in commands)
    assert off_loopback(found) == {}


def test_two_ranks_listen_on_loopback_alone(two: tuple[Path, dict[Place, set[str]]]) -> None:
    assert_on_loopback(two[1])


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        (["train"], "3"),
        (["launch", "--procs-per-node", "1"], "1"),
        pytest.param(["launch", "--with", "mpirun", "--procs-per-node", "2"], "3", marks=pytest.mark.mpi),
    ],
)
def test_one_node_listens_on_loopback_alone_at_any_stage(folder: Path, port: str, words: list[str], stage: str) -> None:
    """A run listens so from start to end, with saves between, and another interface configured. mpirun is MPICH's."""
    verb, *options = words
    options += ["--master-port", port] if "mpirun" in options else []
    run = f"{verb}-{stage}"
    sets = [f"train.run={run}", f"train.zero_stage={stage}", "checkpoint.every=2"]
    found = watched([FMSCALE, verb, "run.yaml", *sets, *options], folder, **NAMED)
    assert_on_loopback(found)
    assert_close(folder, run)


def test_deepspeed(folder: Path, port: str) -> None:
    options = ("--with", "deepspeed", "--procs-per-node", "2", "--master-port", port)
    launched(folder, "deepspeed", "train.zero_stage=3", *options)
    assert_close(folder, "deepspeed")


def test_deepspeed_on_two_hosts_by_ssh(folder: Path, hosts: SshHosts, port: str) -> None:
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in hosts.names))
    options = ("--with", "deepspeed", "--hostfile", "hosts", "--master-port", port)
    said = launched(folder, "hosts", *options, PATH=hosts.path(environment()["PATH"]))
    assert_equal(folder, "hosts")
    assert all(f"{name}: " in said for name in hosts.names)


def test_srun(folder: Path, cluster: Slurm) -> None:
    options = ("--with", "srun", "--nodes", "2", "--procs-per-node", "1")
    launched(folder, "srun", "train.zero_stage=3", *options, **cluster.environment)
    assert_close(folder, "srun")


def test_sbatch(folder: Path, cluster: Slurm) -> None:
    options = ("--with", "sbatch", "--nodes", "2", "--procs-per-node", "1", "--argument=--wait")
    launched(folder, "sbatch", *options, f"--argument=--output={folder}/sbatch.log", **cluster.environment)
    assert_equal(folder, "sbatch")


@pytest.mark.mpi
def test_mpirun_of_open_mpi(folder: Path, port: str, tmp_path: Path) -> None:
    with open_mpi(tmp_path) as variables:
        options = ("--with", "mpirun", "--procs-per-node", "2", "--master-port", port)
        launched(folder, "openmpi", "train.zero_stage=1", *options, **variables)
    assert_close(folder, "openmpi")


def test_script_torchrun_on_two_nodes(folder: Path, port: str) -> None:
    script = [str(LAUNCH / "torchrun.sh"), "run.yaml", "train.run=torchrun.sh"]
    variables = {"NODES": "2", "PROCS": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    other = subprocess.Popen(script, cwd=folder, env=environment(NODE_RANK="1", **variables))
    try:
        started(script, folder, NODE_RANK="0", **variables)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    assert_equal(folder, "torchrun.sh")


def test_script_deepspeed_on_two_hosts_by_ssh(folder: Path, hosts: SshHosts, port: str) -> None:
    (folder / "hosts").write_text("# two\n" + "".join(f"{name} slots=1\n" for name in hosts.names))
    script = [str(LAUNCH / "deepspeed.sh"), "run.yaml", "train.run=deepspeed.sh"]
    path = hosts.path(environment()["PATH"])
    started(script, folder, HOSTFILE="hosts", MASTER_PORT=port, PATH=path)
    assert_equal(folder, "deepspeed.sh")


@pytest.mark.mpi
def test_script_mpirun(folder: Path, port: str, tmp_path: Path) -> None:
    with open_mpi(tmp_path) as variables:
        script = [str(LAUNCH / "mpirun.sh"), "run.yaml", "train.run=mpirun.sh", "train.zero_stage=0"]
        started(script, folder, PROCS="2", MASTER_PORT=port, **variables)
    assert_close(folder, "mpirun.sh")


def test_script_of_slurm_with_an_agent_of_torchrun_on_each_node(folder: Path, cluster: Slurm) -> None:
    script = folder / "edited.sbatch"
    text = (LAUNCH / "slurm" / "train.sbatch").read_text()
    assert text.count("\nstart=srun\n") == 1
    script.write_text(text.replace("\nstart=srun\n", "\nstart=torchrun\n"))
    command = ["sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={folder}/agent.log"]
    started([*command, str(script), "run.yaml", "train.run=agent"], folder, **cluster.environment)
    assert_equal(folder, "agent")
