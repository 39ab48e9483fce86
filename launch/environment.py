"""Variables that every rank gets unless the user says otherwise; the scripts set the same."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

RANK_ENVIRONMENT = {
    # One OpenMP thread a rank: two ranks of two threads each on two cores took six times longer a step.
    "OMP_NUM_THREADS": "1",
    # NCCL then names the link or device that failed; by default a broken network is only a timeout.
    "NCCL_DEBUG": "WARN",
    # Unbuffered, so that the log has the last lines of a killed rank.
    "PYTHONUNBUFFERED": "1",
}


def rank_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that a launcher sets: the defaults, the shell's values of these names over them, `given` on top."""
    return {**{name: os.environ.get(name, value) for name, value in RANK_ENVIRONMENT.items()}, **given}


def search_path() -> str:
    """PATH with the folder of this Python's programs, put in front unless PATH has that folder already.

    With it the launcher, and programs that the launcher calls by name, are found without an activated environment.
    """
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return path if folder in path.split(os.pathsep) else f"{folder}{os.pathsep}{path}"
