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
    # A crash in native code then shows the Python stack of each thread.
    "PYTHONFAULTHANDLER": "1",
    # Blocks of a GPU's memory grow in place: forwards of changing lengths leave fewer holes.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # NCCL's last 2000 collectives are kept, and written at a time-out: they name the rank that was not there.
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
OLDER_NAMES = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}
"""Names under which a user may have set the same; libraries read the newer name first."""


def rank_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that a launcher sets: the defaults, the shell's values of these names over them, `given` on top."""
    told = {**os.environ, **given}
    names = {name: told.get(OLDER_NAMES.get(name, name), value) for name, value in RANK_ENVIRONMENT.items()}
    return {**names, **{name: told[name] for name in names if name in told}, **given}


def search_path() -> str:
    """PATH with the folder of this Python's programs, put in front unless PATH has that folder already.

    With it the launcher, and programs that the launcher calls by name, are found without an activated environment.
    """
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return path if folder in path.split(os.pathsep) else f"{folder}{os.pathsep}{path}"
