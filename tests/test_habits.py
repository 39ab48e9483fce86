"""The files around the code: their names exist, and their versions and figures are those of the code."""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmscale import __version__
from tests.test_layout import LONGEST, MEDIAN

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "DEVELOPERS.md", "SECURITY.md")
PACKED = ("fmscale", "kernels", "launch", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
"""All that a wheel is made of."""


def tree(path: str) -> Any:
    """A YAML file with all values as text (`on:` of a workflow is no boolean)."""
    return yaml.load((ROOT / path).read_text(), Loader=yaml.BaseLoader)


def test_one_version_in_all_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {project["version"], tree("CITATION.cff")["version"], __version__}
    assert versions == {__version__}
    assert re.findall(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == __version__
    assert f"| {__version__.rpartition('.')[0]}.x | yes |" in (ROOT / "SECURITY.md").read_text()


def test_all_extras_are_in_all_but_those_of_developers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"[\w-]+", extras["all"][0].partition("[")[2])
    assert set(named) == extras.keys() - {"all", "dev", "bench"}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_commands_of_the_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.M)
        assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}, link
    for target in re.findall(r"\bmake ([a-z-]+)`|^ +make ([a-z-]+)", text, re.M):
        subprocess.run(["make", "-n", "".join(target)], cwd=ROOT, check=True, capture_output=True)


def test_the_ceilings_are_those_that_the_tests_hold() -> None:
    text = (ROOT / "DEVELOPERS.md").read_text()
    assert f"| {MEDIAN} lines |" in text
    assert f"| {LONGEST} lines |" in text
    most = int(re.findall(r"\| product code \| ([\d,]+) lines", text)[0].replace(",", ""))
    files = [path for folder in ("fmscale", "kernels", "launch") for path in (ROOT / folder).rglob("*.py")]
    lines = [len(path.read_text().splitlines()) for path in files]
    assert sum(lines) <= most
    assert statistics.median(lines) <= MEDIAN


def test_the_workflow_runs_what_a_clean_clone_runs_and_may_only_read() -> None:
    workflow = tree(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"][2:]
    assert lowest in workflow["jobs"]["test"]["strategy"]["matrix"]["python"]


def test_forms_of_issues_are_whole() -> None:
    for name in ("bug", "feature"):
        form = tree(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert {"name", "description", "body"} <= form.keys()
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
        assert any(field.get("validations", {}).get("required") == "true" for field in fields)


def test_hooks_run_the_tools_of_make_lint() -> None:
    hooks = [hook for repo in tree(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    lint = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[0]
    commands = lint.replace("$(BIN)", ".venv/bin").replace("$(MAKE)", "make").splitlines()
    tools = {" ".join(line.split()[:2] if "make" in line else line.split()[:1]) for line in commands}
    entries = [hook["entry"].split() for hook in hooks]
    assert {" ".join(words[:2] if words[0] == "make" else words[:1]) for words in entries} == tools
    assert {hook["language"] for hook in hooks} == {"system"}


def test_an_image_gets_all_that_its_wheel_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {name.removeprefix("!") for name in ignored if name.startswith("!")} == {
        *PACKED,
        "constraints.txt",
    }
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv"), re.M)


@pytest.mark.slow
def test_a_wheel_runs_in_a_fresh_environment_and_has_configs_and_scripts(tmp_path: Path) -> None:
    source, fresh = tmp_path / "source", tmp_path / "fresh"
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", *offline, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    subprocess.run([*pip, "--python", fresh, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    # Only dependencies come from here: the .pth of an editable fmscale counts in a site folder, not on this path.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": packages, "HOME": str(tmp_path)}
    shown = subprocess.check_output([fresh / "bin/fmscale", "--version"], cwd=tmp_path, env=environment, text=True)
    assert shown.strip() == f"fmscale {__version__}"
    (installed,) = fresh.rglob("site-packages/fmscale")
    for name in (
        "configs/run/laptop.yaml",
        "report/style.css",
        "launch/slurm/train.sbatch",
        "launch/torchrun.sh",
        "kernels/rope.py",
    ):
        assert (installed / name).is_file(), name
    assert {path.parent.name for path in installed.rglob("tests")} == set()
