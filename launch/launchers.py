"""Every launcher by its name."""

from collections.abc import Callable
from typing import Literal

from fmscale.launch.deepspeed import plan_deepspeed
from fmscale.launch.mpirun import plan_mpirun
from fmscale.launch.plan import Launch, LaunchRequest
from fmscale.launch.srun import plan_sbatch, plan_srun
from fmscale.launch.torchrun import plan_torchrun

LauncherName = Literal["torchrun", "deepspeed", "srun", "sbatch", "mpirun"]

PLANS: dict[LauncherName, Callable[[LaunchRequest], Launch]] = {
    "torchrun": plan_torchrun,
    "deepspeed": plan_deepspeed,
    "srun": plan_srun,
    "sbatch": plan_sbatch,
    "mpirun": plan_mpirun,
}


def make_plan(launcher: LauncherName, request: LaunchRequest) -> Launch:
    """What `launcher` would start. Raises ConfigError with the remedy for what cannot work."""
    return PLANS[launcher](request)
