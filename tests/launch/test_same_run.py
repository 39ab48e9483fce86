"""A config trained by every launcher and script at all ZeRO stages, and resumed by another launcher at another size and
stage: the same samples in the same order, and the same losses, to the bit at the same size and stage.

A start trains all stages one after another (`chain.py`). Those of `fmscale train` alone take half of the steps, and
scripts of all launchers resume copies of them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmscale.train.compare import Comparison, compare, read_history
from tests.helpers.listeners import Place, off_loopback, other_interface
from tests.helpers.s3_server import free_ports
from tests.helpers.slurm import Slurm
from tests.helpers.ssh_hosts import SshHosts
from tests.launch.training import LAUNCH, copied, environment, prepare, started, watched

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMED = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), other_interface())
"""An interface that the network reaches, as in a cluster's config: a run on one node must not use it."""
STAGES = range(4)
WHOLE, HALF = 6, 3
"""Steps."""
SETS = ("schedule.kind=constant", "checkpoint.every=2")
OTHER_SIZE = 1e-5
"""Relative difference of losses between one rank and two: fp32 sums in other groups differ by 1e-7 a step."""

Listened = dict[Place, set[str]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.yaml and its dataset, and with `bin/fmscale`, which trains all stages."""
    folder = tmp_path_factory.mktemp("same") / "prepared"
    folder.mkdir()
    prepare(folder)
    program = folder / "bin" / "fmscale"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec env PYTHONPATH={ROOT} {sys.executable} -m tests.launch.chain "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def two(prepared: Path) -> tuple[Path, Listened]:
    """Folder of the runs of two ranks by torchrun, which all others must equal, and the places where they listened."""
    folder = copied(prepared, prepared.with_name("two"))
    return folder, watched(launch(folder, WHOLE, "--procs-per-node", "2"), folder, **NAMED, PYTHONPATH=str(ROOT))


@pytest.fixture(scope="module")
def alone(prepared: Path) -> tuple[Path, Listened]:
    """Folder of the runs of one rank, which took half of the steps, and the places where they listened."""
    folder = copied(prepared, prepared.with_name("alone"))
    return folder, watched([str(folder / "bin" / "fmscale"), *train(HALF)], folder, **NAMED)


@pytest.fixture(scope="module")
def mpich(prepared: Path) -> tuple[Path, Listened]:
    """Folder of the runs of two ranks by MPICH, which took half of the steps, and the places where they listened."""
    folder = copied(prepared, prepared.with_name("mpich"))
    words = launch(folder, HALF, "--with", "mpirun", "--procs-per-node", "2", "--master-port", str(free_ports(1)[0]))
    return folder, watched(words, folder, **NAMED, PYTHONPATH=str(ROOT))


@pytest.fixture
def port() -> str:
    return str(free_ports(1)[0])


def train(steps: int, first: int = 0) -> list[str]:
    """Words of `fmscale train`: run-0 to run-3 at the stages from `first` on."""
    return ["train", "run.yaml", *words(steps, first)]


def words(steps: int, first: int = 0) -> list[str]:
    return ["train.run=run", f"train.steps={steps}", f"train.zero_stage={first}", *SETS]


def launch(folder: Path, steps: int, *options: str, first: int = 0) -> list[str]:
    """`fmscale launch` of the folder's config and program."""
    program = [sys.executable, "-m", "tests.launch.chain_launch", str(folder / "bin" / "fmscale")]
    return [*program, "launch", "run.yaml", *words(steps, first), *options]


def launched(folder: Path, *options: str, **more: str) -> str:
    """Output of a launch to the end of its runs."""
    said = started(launch(folder, WHOLE, *options), folder, PYTHONPATH=str(ROOT), **more)
    assert_all_stages(said)
    return said


def script_path(folder: Path) -> str:
    """A PATH where the folder's program comes first."""
    return f"{folder / 'bin'}{os.pathsep}{environment()['PATH']}"


def assert_all_stages(said: str) -> None:
    assert [said.count(f"ZeRO stage {stage}\n") > 0 for stage in STAGES] == [True] * 4, said


def compared(expected: Path, found: Path, ranks: int, first_step: int, tolerance: float, steps: int) -> Comparison:
    """A run beside another; it must be complete, and equal to the other within the tolerance in all of its steps."""
    outcome = json.loads((found / "outcome.json").read_text())
    assert (outcome["complete"], outcome["world_size"], outcome["first_step"]) == (True, ranks, first_step)
    result = compare(read_history(expected), read_history(found), tolerance=tolerance, common=steps < WHOLE)
    assert (result.same, result.steps, result.samples) == (True, steps, 8 * steps), result
    return result


def assert_equal(two: tuple[Path, Listened], folder: Path, steps: int = WHOLE) -> None:
    """All samples, losses and gradient norms at each stage are those of `two`, bit for bit."""
    for stage in STAGES:
        run = f"runs/run-{stage}"
        result = compared(two[0] / run, folder / run, ranks=2, first_step=0, tolerance=0.0, steps=steps)
        assert result.exact


def assert_resumed(two: tuple[Path, Listened], folder: Path, ranks: int) -> None:
    """Each run went on where another launcher's had ended; its order is that of `two`, and its losses are close."""
    for number in STAGES:
        run = f"runs/run-{number}"
        result = compared(two[0] / run, folder / run, ranks, first_step=HALF, tolerance=OTHER_SIZE, steps=WHOLE)
        assert result.order_hashes is not None
        assert len(set(result.order_hashes)) == 1


def assert_on_loopback(found: Listened) -> None:
    """Ranks listened, but at no address that the network reaches."""
    assert any("tests.launch.chain" in command for commands in found.values() for command in commands)
    assert off_loopback(found) == {}


@contextmanager
def open_mpi(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables for an mpirun that is Open MPI's."""
    program = shutil.which("mpirun.openmpi")
    if program is None:
        pytest.skip("needs Open MPI: apt-get install openmpi-bin")
    (tmp_path / "mpirun").symlink_to(program)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    yield root


def test_a_launch_says_what_the_runs_are_and_a_pipe_gets_no_styles(two: tuple[Path, Listened]) -> None:
    lines = (two[0] / "watched.log").read_text().splitlines()
    assert lines[0] == "fmscale launch: local: 1 node, 2 ranks"
    assert [lines.count(f"ranks   2, ZeRO stage {stage}") for stage in STAGES] == [1] * 4
    told = [line.split()[1] for line in lines if line.startswith("step ")]
    assert told == [f"{step}/{WHOLE}" for step in range(1, WHOLE + 1)] * 4
    assert all("\x1b" not in line and "\r" not in line for line in lines)


def test_two_ranks_listen_on_loopback_alone(two: tuple[Path, Listened]) -> None:
    assert_on_loopback(two[1])


def test_alone(two: tuple[Path, Listened], alone: tuple[Path, Listened]) -> None:
    assert_on_loopback(alone[1])
    for stage in STAGES:
        run = f"runs/run-{stage}"
        compared(two[0] / run, alone[0] / run, ranks=1, first_step=0, tolerance=OTHER_SIZE, steps=HALF)


@pytest.mark.mpi
def test_mpirun_of_mpich(two: tuple[Path, Listened], mpich: tuple[Path, Listened]) -> None:
    assert_on_loopback(mpich[1])
    assert_equal(two, mpich[0], HALF)


@pytest.mark.mpi
def test_alone_resumes_what_mpirun_began(two: tuple[Path, Listened], mpich: tuple[Path, Listened]) -> None:
    folder = copied(mpich[0], mpich[0].with_name("from-mpich"))
    assert_all_stages(started([str(folder / "bin" / "fmscale"), *train(WHOLE, first=1)], folder))
    assert_resumed(two, folder, ranks=1)


def test_deepspeed_on_two_hosts_by_ssh(
    prepared: Path, two: tuple[Path, Listened], hosts: SshHosts, port: str, tmp_path: Path
) -> None:
    folder = copied(prepared, tmp_path / "deepspeed")
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in hosts.names))
    options = ("--with", "deepspeed", "--hostfile", "hosts", "--master-port", port)
    said = launched(folder, *options, PATH=hosts.path(environment()["PATH"]))
    assert_equal(two, folder)
    assert all(f"{name}: " in said for name in hosts.names)


def test_srun(prepared: Path, two: tuple[Path, Listened], cluster: Slurm, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path / "srun")
    launched(folder, "--with", "srun", "--nodes", "2", "--procs-per-node", "1", **cluster.environment)
    assert_equal(two, folder)


def test_script_torchrun_on_two_nodes_resumes(
    two: tuple[Path, Listened], alone: tuple[Path, Listened], port: str, tmp_path: Path
) -> None:
    folder = copied(alone[0], tmp_path / "torchrun.sh")
    script = [str(LAUNCH / "torchrun.sh"), *train(WHOLE, first=1)[1:]]
    variables = {"NODES": "2", "PROCS": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    variables |= {"PATH": script_path(folder)}
    with (folder / "node-1.txt").open("w") as out:
        other = subprocess.Popen(
            script, cwd=folder, env=environment(NODE_RANK="1", **variables), stdout=out, stderr=out
        )
    try:
        assert_all_stages(started(script, folder, NODE_RANK="0", **variables))
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    assert_resumed(two, folder, ranks=2)


def test_script_deepspeed_on_two_hosts_by_ssh_resumes(
    two: tuple[Path, Listened], alone: tuple[Path, Listened], hosts: SshHosts, port: str, tmp_path: Path
) -> None:
    folder = copied(alone[0], tmp_path / "deepspeed.sh")
    (folder / "hosts").write_text("# two\n" + "".join(f"{name} slots=1\n" for name in hosts.names))
    script = [str(LAUNCH / "deepspeed.sh"), *train(WHOLE, first=1)[1:]]
    said = started(script, folder, HOSTFILE="hosts", MASTER_PORT=port, PATH=hosts.path(script_path(folder)))
    assert_all_stages(said)
    assert_resumed(two, folder, ranks=2)


@pytest.mark.mpi
def test_script_mpirun_of_open_mpi_resumes(
    two: tuple[Path, Listened], alone: tuple[Path, Listened], port: str, tmp_path: Path
) -> None:
    folder = copied(alone[0], tmp_path / "mpirun.sh")
    with open_mpi(tmp_path) as variables:
        path = f"{tmp_path}{os.pathsep}{script_path(folder)}"
        script = [str(LAUNCH / "mpirun.sh"), *train(WHOLE, first=1)[1:]]
        assert_all_stages(started(script, folder, PROCS="2", MASTER_PORT=port, PATH=path, **variables))
    assert_resumed(two, folder, ranks=2)


def test_sbatch_of_a_script_with_an_agent_of_torchrun_on_each_node_resumes(
    two: tuple[Path, Listened], alone: tuple[Path, Listened], cluster: Slurm, tmp_path: Path
) -> None:
    folder = copied(alone[0], tmp_path / "sbatch")
    script = folder / "edited.sbatch"
    text = (LAUNCH / "slurm" / "train.sbatch").read_text()
    assert text.count("\nstart=srun\n") == 1
    script.write_text(text.replace("\nstart=srun\n", "\nstart=torchrun\n"))
    options = ["--with", "sbatch", "--script", str(script), "--nodes", "2", "--procs-per-node", "1"]
    options += ["--argument=--wait", f"--argument=--output={folder}/sbatch.log"]
    variables = {**cluster.environment, "PATH": script_path(folder), "PYTHONPATH": str(ROOT)}
    started(launch(folder, WHOLE, *options, first=1), folder, **variables)
    assert_all_stages((folder / "sbatch.log").read_text())
    assert_resumed(two, folder, ranks=2)
