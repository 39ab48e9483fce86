"""What every rank gets in its environment unless the user says otherwise; the scripts say the same."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

RANK_ENVIRONMENT = {
    # One OpenMP thread a rank: two ranks of two threads each on two cores took six times longer a step.
    "OMP_NUM_THREADS": "1",
    # Names the link or device that failed; without it a broken network is only a timeout.
    "NCCL_DEBUG": "WARN",
    # What a rank said before it was killed is in the log.
    "PYTHONUNBUFFERED": "1",
}


def rank_environment(wanted: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a launcher sets: the defaults, as the shell has them, and on top what is `wanted`."""
    defaults = {name: environ.get(name, value) for name, value in RANK_ENVIRONMENT.items()}
    return {**defaults, **wanted}


def search_path(environ: Mapping[str, str] = os.environ) -> str:
    """PATH with the folder of this Python's programs in front, unless it is in it: an environment need not be
    activated for the launcher to be found, nor for what the launcher calls by name."""
    folder = str(Path(sys.executable).parent)
    path = environ.get("PATH", os.defpath)
    return path if folder in path.split(os.pathsep) else f"{folder}{os.pathsep}{path}"


def without_torchrun_options(environ: Mapping[str, str]) -> dict[str, str]:
    """Without PET_*, which torchrun takes for options that were not given: one of them would have it meet elsewhere."""
    return {name: value for name, value in environ.items() if not name.startswith("PET_")}


def beside_python(name: str) -> str | None:
    """Path of a program that came with this Python's packages, if it is there."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.is_file() else None
