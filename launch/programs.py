"""Paths of the programs of a launch, and the packages to install for missing programs."""

import shutil
import subprocess

from fmscale.launch.environment import beside_python

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
    """Path of a program. Raises ConfigError that names its package.

    This Python's fmscale, torchrun and deepspeed win over the PATH's; the PATH's mpirun wins over a wheel's.
    """
    beside, on_path = beside_python(name), shutil.which(name)
    path = beside or on_path if name in ("fmscale", "torchrun", "deepspeed") else on_path or beside
    if path is None:
        raise ConfigError(f"There is no {name} on the PATH", remedy=f"{PACKAGES[name]}.")
    return path


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
