"""Slurm: srun starts a step, in an allocation or in one of its own; sbatch queues a script that does."""

from importlib import resources
from pathlib import Path

from fmscale.launch.environment import search_path
from fmscale.launch.plan import Launch, LaunchRequest, summarized
from fmscale.launch.programs import find_program
from fmscale.launch.signals import DEAF_UNTIL_READY

from fmscale.errors import ConfigError


def plan_srun(request: LaunchRequest) -> Launch:
    """One task a rank. Where they meet is told by the step's own variables, unless it is given."""
    _no_hostfile(request, "srun")
    options = [*_shape(request)]
    # When one rank fails, the others would wait for it until their collective times out.
    options += ["--kill-on-bad-exit=1", *request.arguments]
    environment = dict(request.environment)
    if request.master_addr is not None or request.master_port is not None:
        if request.master_addr is None or request.master_port is None:
            raise ConfigError(
                "srun needs both --master-addr and --master-port, or neither",
                found={"--master-addr": request.master_addr, "--master-port": request.master_port},
                remedy="Without them the ranks meet on the first node, on a port made of the job's number.",
            )
        environment |= {"MASTER_ADDR": request.master_addr, "MASTER_PORT": str(request.master_port)}
    return Launch(
        argv=(find_program("srun"), *options, *DEAF_UNTIL_READY, *request.command),
        environment=environment,
        summary=summarized("srun", request),
        stop_by="launcher",
    )


def plan_sbatch(request: LaunchRequest) -> Launch:
    """The batch script with the config as its argument: the shipped one, or the user's own."""
    _no_hostfile(request, "sbatch")
    script = request.script or Path(str(resources.files("fmscale.launch").joinpath("slurm/train.sbatch")))
    if not script.is_file():
        raise ConfigError(
            "There is no such batch script",
            found=str(script),
            remedy="Copy launch/slurm/train.sbatch and edit it.",
        )
    # The script calls fmscale by name.
    environment = {**request.environment, "PATH": search_path()}
    arguments = request.command[2:]
    return Launch(
        argv=(find_program("sbatch"), *_shape(request), *request.arguments, str(script), *arguments),
        environment=environment,
        summary=summarized("sbatch", request) + f", by {script.name}",
        stop_by="terminate",
        detached=True,
    )


def _shape(request: LaunchRequest) -> list[str]:
    return [
        f"--nodes={request.nodes}",
        f"--ntasks={request.ranks}",
        f"--ntasks-per-node={request.procs_per_node}",
    ]


def _no_hostfile(request: LaunchRequest, launcher: str) -> None:
    if request.hosts:
        raise ConfigError(
            f"{launcher} takes no hostfile: Slurm chooses the nodes",
            found=str(request.hostfile),
            remedy="Give --nodes; or name nodes to Slurm: --argument=--nodelist=node-[1-2].",
        )
