"""Sweeps: combinations and names, launches that print them, and runs one after another and as an array of Slurm."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from fmscale.launch.sweep import MOST, read_sweep, split_values
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.errors import ConfigError
from tests.helpers.slurm import Slurm
from tests.launch.conftest import DryRun
from tests.launch.training import FMSCALE, environment, prepare, started


def test_all_combinations_with_a_name_each() -> None:
    elements = read_sweep(["optimizer.lr=1e-3, 3e-4", "data.seed=1,2"], "base")
    assert [(one.run, *one.values.values()) for one in elements] == [
        ("base-lr-1e-3-seed-1", "1e-3", "1"),
        ("base-lr-1e-3-seed-2", "1e-3", "2"),
        ("base-lr-3e-4-seed-1", "3e-4", "1"),
        ("base-lr-3e-4-seed-2", "3e-4", "2"),
    ]
    assert elements[1].overrides == ("optimizer.lr=1e-3", "data.seed=2", "train.run=base-lr-1e-3-seed-2")
    assert read_sweep([], "base") == ()


def test_keys_of_one_name_are_told_apart_and_odd_values_become_plain() -> None:
    names = [one.run for one in read_sweep(["model.seed=1", "data.seed=2"], "r")]
    assert names == ["r-model.seed-1-data.seed-2"]
    assert [one.run for one in read_sweep(["data.sources=[{dataset: a/b}],null"], "r")] == [
        "r-sources-_dataset_a_b",
        "r-sources-null",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [("1,2", ["1", "2"]), ("[1,2],3", ["[1,2]", "3"]), ("{a: [1, 2]},'x,y'", ["{a: [1, 2]}", "'x,y'"]), ("", [""])],
)
def test_commas_inside_a_value_do_not_cut_it(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


@pytest.mark.parametrize(
    ("sweeps", "told"),
    [
        (["data.seed"], "needs a key and its values"),
        (["data.seed="], "needs a key and its values"),
        (["data.seed=1,,2"], "needs a key and its values"),
        (["=1"], "needs a key and its values"),
        (["data.seed=1\t2"], "needs a key and its values"),
        (["data.seed=1", "data.seed=2"], "swept twice"),
        (["train.run=a,b"], "train.run cannot be swept"),
        (["launch.nodes=1,2"], "launch.nodes cannot be swept"),
        (["data.seed=1,1"], "would have one name"),
        (["data.x=a b,a/b"], "would have one name"),
        (["data.seed=" + ",".join(map(str, range(MOST + 1)))], f"at most {MOST}"),
    ],
)
def test_refusals(sweeps: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        read_sweep(sweeps, "run")


SWEEP = ("--sweep", "optimizer.lr=1e-3,3e-4", "--procs-per-node", "2")


def test_slurm_gets_one_array(launch: DryRun, tmp_path: Path) -> None:
    lines = launch("--with", "sbatch", *SWEEP, "--argument=--array=0-1%1")
    assert lines[0] == "# sbatch: 1 node, 2 ranks, by train.sbatch, 2 runs"
    at = lines.index("export FMSCALE_SWEEP='optimizer.lr=1e-3")
    rest = ["train.run=run-lr-1e-3", "", "optimizer.lr=3e-4", "train.run=run-lr-3e-4'"]
    assert lines[at + 1 : at + 5] == rest
    assert "--ntasks-per-node=2 --array=0-1 --array=0-1%1 " in lines[-1]
    own = tmp_path / "own.sbatch"
    own.write_text("#!/bin/sh\nsrun fmscale train $@\n")
    refused = "\n".join(launch("--with", "sbatch", *SWEEP, "--script", str(own), status=2))
    assert "every element of the array would train the same run" in refused


def test_other_launchers_get_a_command_for_each_run(launch: DryRun) -> None:
    lines = launch("--with", "srun", *SWEEP)
    ends = [line.split(" run.yaml ")[1] for line in lines if " run.yaml " in line]
    assert ends == [f"train.steps=2 optimizer.lr={lr} train.run=run-lr-{lr}" for lr in ("1e-3", "3e-4")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--sweep optimizer.nope=1,2", "unknown key in optimizer"),
        ("--sweep optimizer.lr=1e-3,x", "optimizer.lr"),
        ("--sweep batch.micro_batch=1,3", "the batch does not come out"),
        (
            "--nodes 2 --node-rank 0 --master-addr n --sweep data.seed=1,2",
            "torchrun on several nodes cannot run a sweep",
        ),
        ("--with sbatch --doctor", "starts the doctor once"),
        ("--sweep data.seed=1,2 --doctor", "starts the doctor once"),
        ("--summary", "--summary shows the runs of a sweep"),
    ],
)
def test_launches_that_are_refused(launch: DryRun, words: str, told: str) -> None:
    assert told in "\n".join(launch(*words.split(), "--procs-per-node", "1", status=2))


def test_the_doctor_runs_in_the_place_of_the_training(launch: DryRun) -> None:
    assert launch("--procs-per-node", "2", "--doctor")[-1].endswith("/fmscale doctor --nodes")


def test_the_summary_has_what_is_there(
    launch: DryRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = tmp_path / "runs" / "run-lr-1e-3"
    done.mkdir(parents=True)
    (done / "metrics.jsonl").write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 2.25}\n{"event": "save"}\n')
    (done / "outcome.json").write_text(json.dumps({"complete": True}))
    result = CliRunner().invoke(build_app(), ["launch", "run.yaml", *SWEEP, "--summary"])
    rows = [line.split() for line in result.output.splitlines()]
    assert rows == [
        ["run", "optimizer.lr", "step", "loss", "complete"],
        ["run-lr-1e-3", "1e-3", "2", "2.25", "yes"],
        ["run-lr-3e-4", "3e-4", "-", "-", "-"],
    ]


@pytest.mark.slow
def test_runs_one_after_another_and_as_an_array_of_slurm(tmp_path: Path, cluster: Slurm) -> None:
    """A run that fails does not end the sweep, and the status tells of it; the array's elements get their values."""
    prepare(tmp_path)
    command = [FMSCALE, "launch", "run.yaml", "train.steps=2"]
    words = ["--sweep", "data.sources.0.dataset=nope,text", "--sweep", "train.seed=1", "--procs-per-node", "1"]
    done = subprocess.run([*command, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [row[:4] + row[5:] for row in rows] == [
        ["run-dataset-nope-seed-1", "nope", "1", "-", "-"],
        ["run-dataset-text-seed-1", "text", "1", "2", "yes"],
    ]
    array = [*command, "train.run=a", "--with", "sbatch", "--sweep", "optimizer.lr=1e-3,3e-4", "--procs-per-node", "1"]
    started([*array, "--argument=--wait"], tmp_path, **cluster.environment)
    shown = started([*array, "--summary"], tmp_path).splitlines()
    assert [line.split()[::2][:2] for line in shown[1:]] == [["a-lr-1e-3", "2"], ["a-lr-3e-4", "2"]]
    assert all(line.endswith("yes") for line in shown[1:])
