"""Origin of a report's numbers: machine, versions, source."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
"""The folder of this package: a checkout, which has .git, or site-packages."""


def this_machine() -> dict[str, Any]:
    """The machine that computes, without its GPUs."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def gpus() -> list[str]:
    """Names of the GPUs that torch can use."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of `packages`, without packages that are not installed."""
    numbers = {"python": platform.python_version()}
    for package in packages:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


def source(folder: Path = CHECKOUT) -> str:
    """The commit of the checkout that runs, with "-dirty" where it was edited; else the version of the package."""
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            pass
        else:
            if described.returncode == 0:
                return f"commit {described.stdout.strip()}"
    return f"fmscale {importlib.metadata.version('fmscale')}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
