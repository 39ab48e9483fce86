"""`fmscale launch --doctor`: the examination of all ranks by real launchers."""

from pathlib import Path

import pytest

from tests.helpers.slurm import Slurm
from tests.launch.training import FMSCALE, started

CONFIG = "data: {sources: [{dataset: text}]}\nbatch: {global_batch: 8, micro_batch: 1}\ntrain: {steps: 2}\n"


@pytest.mark.slow
def test_the_doctor_by_launchers(tmp_path: Path, cluster: Slurm) -> None:
    """On one node by torchrun, and on two by srun; the run's error.json stays."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "error.json").write_text("{}")
    command = [FMSCALE, "launch", "run.yaml", "--doctor", "--procs-per-node"]
    assert "links, node" in started([*command, "2"], tmp_path)
    two = started([*command, "1", "--with", "srun", "--nodes", "2"], tmp_path, **cluster.environment)
    assert "links, network" in two
    assert (tmp_path / "runs" / "run" / "error.json").read_text() == "{}"
