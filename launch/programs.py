"""Paths of the launchers' programs, and the packages to install for missing programs."""

import shutil
import subprocess
import sys
from pathlib import Path

from fmscale.errors import ConfigError

PACKAGES = {
    "fmscale": "Install it into the environment that starts it: pip install fmscale",
    "torchrun": "It comes with torch: pip install torch",
    "deepspeed": "pip install deepspeed",
    "pdsh": "deepspeed starts other nodes by it: apt-get install pdsh, or dnf install pdsh-rcmd-ssh",
    "ssh": "apt-get install openssh-client, or dnf install openssh-clients",
    "mpirun": "pip install mpich, or apt-get install openmpi-bin, or load your cluster's MPI module",
    "srun": "Slurm has it: run this on a login node, or apt-get install slurm-client",
    "sbatch": "Slurm has it: run this on a login node, or apt-get install slurm-client",
}


def find_program(name: str) -> str:
    """Path of a launcher's program, or of fmscale. Raises ConfigError that names its package.

    fmscale, torchrun and deepspeed must be those of this Python; the cluster's mpirun goes before that of a wheel.
    """
    beside, on_path = Path(sys.executable).with_name(name), shutil.which(name)
    if beside.is_file() and (name in ("fmscale", "torchrun", "deepspeed") or on_path is None):
        return str(beside)
    if on_path is None:
        raise ConfigError(f"There is no {name} on the PATH or beside this Python", remedy=f"{PACKAGES[name]}.")
    return on_path


def mpi_kind(mpirun: str) -> str:
    """Open MPI, Intel MPI or MPICH, whose options differ. Raises ConfigError for any other mpirun."""
    answer = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60)
    for mark, kind in (("Open MPI", "Open MPI"), ("Intel(R) MPI", "Intel MPI"), ("HYDRA", "MPICH")):
        if mark in answer.stdout + answer.stderr:
            return kind
    raise ConfigError(
        f"{mpirun} is of an MPI that fmscale does not know",
        found=(answer.stdout or answer.stderr).partition("\n")[0],
        remedy="Put the mpirun of Open MPI, MPICH or Intel MPI first on the PATH.",
    )
