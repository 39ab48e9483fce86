"""`benchmarks/gpu_wheels.sh`: the wheels that a GPU machine without a network lacks, and their commit.

They are pure, or for CPython on manylinux x86_64, whatever machine runs this. torch, Triton, NumPy, PyArrow and their
dependencies are excluded: a machine with a GPU has them, and they take gigabytes.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.gpu_hour.source import MANIFEST, WHEELS, git, identity
from benchmarks.harness import ROOT

BUILT = "deepspeed"
"""Package with a source release only: built here without extensions, so that it is pure (2.2 MB) and needs no compiler
there.
"""
FETCHED = (
    "pydantic",
    "pydantic_core",
    "typing_inspection",
    "typing_extensions",
    "annotated_types",
    "hjson",
    "crc32c",
    "obstore",
    "zstandard",
)
TESTING = ("pytest", "iniconfig", "pluggy", "hypothesis", "sortedcontainers")
"""Packages of the kernels' tests, for images that lack them or have other versions."""
GLIBC = (34, 31, 28, 27, 26, 24, 17)
"""Accepted manylinux_2_N tags; pip matches each literally."""
LIMIT_BYTES = 60 * 2**20
"""Limit for the checkout and the wheels together: 64 MiB can be copied, and archives have headers."""


def version(name: str) -> str:
    """The version that the tests ran with: of constraints.txt, or installed here."""
    held = re.search(rf"^{name.replace('_', '[-_]')}==(\S+)", (ROOT / "constraints.txt").read_text(), re.M | re.I)
    return held[1] if held else metadata.version(name)


def collect(folder: Path, python: str) -> list[Path]:
    """Build and download into an empty folder; the wheels. Raises CalledProcessError with pip's words shown."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(
        [*wheel, f"{BUILT}=={version(BUILT)}"], check=True, env={**os.environ, "DS_BUILD_OPS": "0"}, cwd=ROOT
    )
    platforms = [f"manylinux_2_{glibc}_x86_64" for glibc in GLIBC] + ["manylinux2014_x86_64"]
    download = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    download += ["--python-version", python, *(f"--platform={one}" for one in platforms), "-d", str(folder)]
    wanted = [f"{name}=={version(name)}" for name in (*FETCHED, *TESTING)]
    subprocess.run([*download, *wanted], check=True, cwd=ROOT)
    return sorted(folder.glob("*.whl"))


def tree_bytes() -> int:
    """Bytes of the copied checkout: tracked files, and new ones that git does not ignore."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sum((ROOT / name).stat().st_size for name in set(names) if name and (ROOT / name).is_file())


def refusal(tree: int, wheels: int, limit: int = LIMIT_BYTES) -> str:
    """Reason why this cannot be copied; empty if it can be."""
    if tree + wheels <= limit:
        return ""
    return (
        f"checkout and wheels are too large to carry: found {(tree + wheels) / 2**20:.1f} MiB ({tree / 2**20:.1f} "
        f"and {wheels / 2**20:.1f}), at most {limit / 2**20:.0f}. Remove or ignore large files: "
        "`git ls-files --others --exclude-standard` lists those that are new."
    )


def main() -> int:
    """Collect, list, and write the manifest; 1 if it is too large to copy."""
    parser = argparse.ArgumentParser(prog="gpu_wheels.sh", description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default="3.12", help="the target's Python (default 3.12)")
    parser.add_argument("--out", type=Path, default=WHEELS, help=f"default {WHEELS.relative_to(ROOT)}")
    asked = parser.parse_args()
    wheels = collect(asked.out, asked.python)
    strangers = [one.name for one in wheels if not re.search(r"-(any|manylinux[\w.]+x86_64)\.whl$", one.name)]
    if strangers:
        print(f"built for this machine alone: {', '.join(strangers)}", file=sys.stderr)
        return 1
    for one in wheels:
        print(f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.stat().st_size:>9,}  {one.name}")
    (asked.out / MANIFEST).write_text(json.dumps({**identity(), "python": asked.python}, indent=1) + "\n")
    tree, carried = tree_bytes(), sum(one.stat().st_size for one in wheels)
    print(f"{len(wheels)} wheels, {carried / 2**20:.1f} MiB, in {asked.out}; the checkout has {tree / 2**20:.1f} MiB")
    why = refusal(tree, carried)
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
