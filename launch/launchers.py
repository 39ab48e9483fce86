"""Launchers by name."""

from collections.abc import Callable

from fmscale.launch.deepspeed import launch_by_deepspeed
from fmscale.launch.launch import Launch, LaunchRequest
from fmscale.launch.local import launch_on_this_node
from fmscale.launch.mpirun import launch_by_mpirun
from fmscale.launch.srun import launch_by_sbatch, launch_by_srun
from fmscale.launch.torchrun import launch_by_torchrun

LAUNCHERS: dict[str, Callable[[LaunchRequest], Launch]] = {
    "local": launch_on_this_node,
    "torchrun": launch_by_torchrun,
    "deepspeed": launch_by_deepspeed,
    "srun": launch_by_srun,
    "sbatch": launch_by_sbatch,
    "mpirun": launch_by_mpirun,
}
"""Functions from a request to its launch. They raise ConfigError with the remedy for a request that cannot work."""
