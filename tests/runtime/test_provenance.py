"""Origin of numbers: the machine, versions, the source."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from fmscale.runtime.provenance import source, this_machine, versions


def test_a_machine_and_versions_are_told_and_what_is_not_installed_is_left_out() -> None:
    found = this_machine()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] > 2**28
    assert platform.system() in found["platform"]
    assert found.keys() == {"platform", "system", "processor", "cores", "memory_bytes"}
    told = {"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}
    assert versions(["numpy", "no-such-package-of-fmscale"]) == told


def test_a_report_says_which_source_it_is_of(tmp_path: Path) -> None:
    version = f"fmscale {importlib.metadata.version('fmscale')}"
    assert source(tmp_path) == version
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert source(tmp_path) == version, "no commit yet"
    (tmp_path / "a").write_text("a")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert source(tmp_path) == f"commit {commit}"
    (tmp_path / "site-packages").mkdir()
    assert source(tmp_path / "site-packages") == version, "an installed package is not of the checkout around it"
    (tmp_path / "a").write_text("b")
    assert source(tmp_path) == f"commit {commit}-dirty"
