"""Where the numbers of a report come from: machine, versions, source."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
"""The folder that this package lies in: a checkout has .git there, site-packages has not."""


def machine() -> dict[str, Any]:
    """What computes."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    names = ("fmscale", "torch", "deepspeed", "numpy", "pyarrow", "tokenizers")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in names}}


def source(folder: Path = CHECKOUT) -> str:
    """The commit of the checkout that runs, with "-dirty" where it was edited; else the version of the package."""
    if (folder / ".git").exists():
        asked = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
        try:
            told = subprocess.run(asked, capture_output=True, text=True, check=False)
        except OSError:
            pass
        else:
            if told.returncode == 0:
                return f"commit {told.stdout.strip()}"
    return f"fmscale {importlib.metadata.version('fmscale')}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
