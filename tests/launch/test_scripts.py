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
    exports = dict(re.findall(r'^export (\w+)="\$\{\1:-(\w+)\}"$', text, flags=re.MULTILINE))
    assert exports == RANK_ENVIRONMENT
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("export "):
            assert lines[number - 1].startswith(("# ", "export ", "if ")), line


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
    """cli calls launch outside fmscale/, which import-linter does not see. Only torchrun's module imports torch."""
    allowed = ("fmscale.launch.", "fmscale.errors.", "fmscale.runtime.", "fmscale.config.")
    strangers = {
        (path.name, name)
        for path in sources("launch")
        for name in imported(path)
        if name.split(".")[0] in ("fmscale", "torch") and not f"{name}.".startswith(allowed)
        if (path.name, name.split(".")[0]) != ("rendezvous.py", "torch")
    }
    assert strangers == set()
