"""Slurm: srun starts a step, in the shell's allocation or a new allocation; sbatch queues a script that calls srun."""

from importlib import resources
from pathlib import Path

from fmscale.launch.environment import search_path
from fmscale.launch.launch import Launch, LaunchRequest
from fmscale.launch.programs import find_program
from fmscale.launch.signals import DEAF_UNTIL_READY

from fmscale.errors import ConfigError


def launch_by_srun(request: LaunchRequest) -> Launch:
    """One task for each rank. The step's variables give the ranks a meeting point, unless the request has one."""
    _no_hostfile(request, "srun")
    # Without --kill-on-bad-exit the other ranks wait for a failed rank until their collective times out.
    options = [*_shape(request), "--kill-on-bad-exit=1", *request.arguments]
    environment = dict(request.environment)
    if request.master_addr is not None and request.master_port is not None:
        environment |= {"MASTER_ADDR": request.master_addr, "MASTER_PORT": str(request.master_port)}
    elif request.master_addr is not None or request.master_port is not None:
        raise ConfigError(
            "srun needs both --master-addr and --master-port, or neither",
            found={"--master-addr": request.master_addr, "--master-port": request.master_port},
            remedy="Without them the ranks meet on the first node, on a port made of the job's number.",
        )
    return Launch(
        argv=(find_program("srun"), *options, *DEAF_UNTIL_READY, *request.command),
        environment=environment,
        summary=request.summary("srun"),
        stop_by="launcher",
    )


def launch_by_sbatch(request: LaunchRequest) -> Launch:
    """The batch script, of fmscale or of the user, with the config as its argument."""
    _no_hostfile(request, "sbatch")
    script = request.script or Path(str(resources.files("fmscale.launch").joinpath("slurm/train.sbatch")))
    if not script.is_file():
        raise ConfigError(
            "There is no such batch script", found=str(script), remedy="Copy launch/slurm/train.sbatch and edit it."
        )
    # The script calls fmscale by name.
    environment = {**request.environment, "PATH": search_path()}
    options = (*_shape(request), *request.arguments)
    return Launch(
        argv=(find_program("sbatch"), *options, str(script), *request.command[2:]),
        environment=environment,
        summary=f"{request.summary('sbatch')}, by {script.name}",
        stop_by="terminate",
        detached=True,
    )


def _shape(request: LaunchRequest) -> list[str]:
    return [f"--nodes={request.nodes}", f"--ntasks={request.ranks}", f"--ntasks-per-node={request.procs_per_node}"]


def _no_hostfile(request: LaunchRequest, launcher: str) -> None:
    if request.hosts:
        raise ConfigError(
            f"{launcher} takes no hostfile: Slurm chooses the nodes",
            found=str(request.hostfile),
            remedy="Give --nodes; or name nodes to Slurm: --argument=--nodelist=node-[1-2].",
        )
