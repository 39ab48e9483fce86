"""The scripts that users edit: valid shell, the verb's environment, and never silently a single node."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fmscale.launch.environment import RANK_ENVIRONMENT

from tests.test_layout import imported, sources

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("slurm/*.sbatch")])
NAMES = [script.name for script in SCRIPTS]


def test_the_scripts_are_these() -> None:
    assert NAMES == ["deepspeed.sh", "mpirun.sh", "ingest.sbatch", "train.sbatch", "torchrun.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_script_is_sound_shell(script: Path) -> None:
    shell = script.read_text().splitlines()[0].removeprefix("#!")
    subprocess.check_call([shell, "-n", str(script)])
    if shutil.which("shellcheck"):
        subprocess.check_call(["shellcheck", str(script)])


@pytest.mark.parametrize("script", [one for one in SCRIPTS if "ingest" not in one.name], ids=lambda one: one.name)
def test_a_script_sets_what_the_verb_sets_and_says_why(script: Path) -> None:
    text = script.read_text()
    exports = dict(
        re.findall(r'^export (\w+)="\$\{\1:-(?:\$\{PYTORCH_CUDA_ALLOC_CONF:-)?([\w:]+)\}+"$', text, flags=re.MULTILINE)
    )
    assert exports == RANK_ENVIRONMENT
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("export "):
            assert lines[number - 1].startswith(("# ", "export ", "if ")), line


@pytest.mark.parametrize("name", ["deepspeed.sh", "mpirun.sh"])
def test_a_script_passes_each_variable_to_other_nodes(name: str) -> None:
    passed = re.findall(r"-x (\w+)|(?:env|\\\n) +(\w+)=|\" (\w+)=", (LAUNCH / name).read_text())
    assert {name for names in passed for name in names} >= RANK_ENVIRONMENT.keys()


def test_deepspeed_over_ssh_ends_its_own_run_alone(tmp_path: Path) -> None:
    """A run by hand, whose end `deepspeed` itself would make the end of all runs on the hosts."""
    for name, text in {"python3": 'echo "$@"', "fmscale": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("node-1 slots=2\n")
    script = ["sh", str(LAUNCH / "deepspeed.sh"), "run.yaml"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOSTFILE": "hosts"}
    said = subprocess.check_output(script, cwd=tmp_path, env=environment, text=True)
    assert said.startswith("-m fmscale.launch.over_ssh --hostfile hosts --force_multi --master_addr node-1 ")
    assert said.endswith(f"{tmp_path}/fmscale train run.yaml\n")


JOB = {"SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
INSIDE = {
    "bare": "task",
    "apptainer": "task apptainer exec --nv --bind FOLDER,/data,/scratch --pwd FOLDER image.sif",
    "pyxis": "--container-image=image.sif --container-mounts=FOLDER:FOLDER,/data:/data,/scratch:/scratch "
    "--container-workdir=FOLDER --no-container-entrypoint task",
}
"""Options of srun, and from `task` on words in front of a rank, by the way to have fmscale. Neither apptainer nor pyxis
is here: these words are all that was checked."""


def dry_run(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/bin:/bin", "DRY_RUN": "1", **JOB, **variables}
    command = ["bash", str(LAUNCH / "slurm/train.sbatch"), "run.yaml", "a=b c"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("container", INSIDE)
def test_a_job_starts_its_ranks_bare_or_in_an_image(tmp_path: Path, container: str) -> None:
    done = dry_run(tmp_path, CONTAINER=container, IMAGE="image.sif", MOUNTS="/data,/scratch")
    assert done.returncode == 0, done.stderr
    split = ["bash", "-c", f"printf '%s\\n--\\n' {done.stdout}"]
    words = subprocess.check_output(split, text=True).split("\n--\n")[:-1]
    inside = INSIDE[container].replace("FOLDER", str(tmp_path)).split()
    options, front = inside[: inside.index("task")], inside[inside.index("task") :]
    placement = ["--distribution=block", "--cpu-bind=none", "--kill-on-bad-exit=1", "--label"]
    head = ["srun", "--ntasks=4", *placement, *options, "bash", "-c", 'trap "" USR1; exec "$@"', *front]
    assert words[: len(head)] == head
    assert words[len(head) : len(head) + 2] == ["bash", "-c"]
    assert words[-3:] == ["fmscale", "run.yaml", "a=b c"]
    # The signal is ignored inside the container too, before the rank begins.
    assert re.match(r'trap "" USR1; .*exec fmscale train "\$@"$', words[-4], re.DOTALL)


@pytest.mark.parametrize(
    ("variables", "told"),
    [({"CONTAINER": "docker"}, "must be bare, apptainer or pyxis"), ({"CONTAINER": "pyxis"}, "pyxis needs IMAGE")],
)
def test_a_job_refuses_a_container_that_it_cannot_start(tmp_path: Path, variables: dict[str, str], told: str) -> None:
    done = dry_run(tmp_path, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_an_element_of_a_sweep_gets_its_line(tmp_path: Path) -> None:
    sweep = "optimizer.lr=1\ntrain.run=run-1\n\noptimizer.lr=2\ndata.x=[a  b]\ntrain.run=run-2"
    done = dry_run(tmp_path, FMSCALE_SWEEP=sweep, SLURM_ARRAY_TASK_ID="1")
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {done.stdout}"], text=True).split("\n")[:-1]
    assert words[-5:] == ["run.yaml", "a=b c", "optimizer.lr=2", "data.x=[a  b]", "train.run=run-2"]
    alone = dry_run(tmp_path, FMSCALE_SWEEP=sweep)
    assert "optimizer" not in alone.stdout


@pytest.mark.parametrize(
    ("script", "environment", "told"),
    [
        ("torchrun.sh", {"NODES": "2"}, "MASTER_ADDR must name the first of the 2 nodes"),
        ("deepspeed.sh", {"HOSTFILE": "nowhere"}, "the hostfile nowhere is not there"),
    ],
)
def test_several_nodes_never_become_one(script: str, environment: dict[str, str], told: str) -> None:
    done = subprocess.run(
        ["sh", str(LAUNCH / script), "run.yaml"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert told in done.stderr


def test_launch_stands_below_the_command_line() -> None:
    """cli calls launch outside fmscale/, which import-linter does not see. Only torchrun's meetings import torch."""
    allowed = ("fmscale.launch.", "fmscale.errors.", "fmscale.runtime.", "fmscale.config.")
    strangers = {
        (path.name, name)
        for path in sources("launch")
        for name in imported(path)
        if name.split(".")[0] in ("fmscale", "torch") and not f"{name}.".startswith(allowed)
        if not (path.name in ("elastic.py", "rendezvous.py") and name.split(".")[0] == "torch")
    }
    assert strangers == set()
