"""A Slurm and ssh hosts, for the session; and `fmscale launch --dry-run` where files stand in for launchers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fmscale.launch.environment import OLDER_NAMES, RANK_ENVIRONMENT
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from tests.helpers import slurm, ssh_hosts
from tests.helpers.slurm import Slurm
from tests.helpers.ssh_hosts import SshHosts

CONFIG = """
data: {sequence_length: 128, sources: [{dataset: code}]}
batch: {global_batch: 16, micro_batch: 1}
train: {steps: 4}
"""
DryRun = Callable[..., list[str]]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """A Slurm of two nodes."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with Slurm(2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def hosts() -> Iterator[SshHosts]:
    """Two hosts that ssh reaches."""
    if reason := ssh_hosts.missing():
        pytest.skip(reason)
    with SshHosts(2) as hosts:
        yield hosts


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH beside the system's own shell; srun, sbatch, pdsh, ssh and mpirun are in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "sbatch", "pdsh", "ssh"):
        (folder / name).write_text("#!/bin/sh\n")
    (folder / "mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    for name in (*RANK_ENVIRONMENT, *OLDER_NAMES.values(), "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def launch(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DryRun:
    """`fmscale launch run.yaml train.steps=2 --dry-run` with more arguments: the lines that it prints."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "hosts").write_text("node-1 slots=4\nnode-2 slots=4\n")
    monkeypatch.chdir(tmp_path)

    def run(*words: str, status: int = 0) -> list[str]:
        arguments = ["launch", "run.yaml", "train.steps=2", *words, "--dry-run"]
        result = CliRunner().invoke(build_app(), arguments)
        assert result.exit_code == status, result.output
        return result.output.splitlines()

    return run
