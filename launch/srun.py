"""Slurm: srun starts a step, in the shell's allocation or a new allocation; sbatch queues a script that calls srun."""

from importlib import resources
from pathlib import Path

from fmscale.launch.environment import search_path
from fmscale.launch.launch import Launch, LaunchRequest
from fmscale.launch.programs import find_program
from fmscale.launch.signals import DEAF_UNTIL_READY

from fmscale.errors import ConfigError

SWEEP = "FMSCALE_SWEEP"
LONGEST_VARIABLE = 120_000
"""Characters; the kernel takes 128 KiB."""
PLACEMENT = ("--distribution=block", "--cpu-bind=none", "--kill-on-bad-exit=1")
"""Ranks fill node after node. Slurm would bind a rank with its loader threads to one core, perhaps of the other socket
than its GPU's: a rank takes the cores beside its GPU itself (`runtime/placement.py`). Without --kill-on-bad-exit the
other ranks wait for a failed rank until their collective times out."""


def launch_by_srun(request: LaunchRequest) -> Launch:
    """One task for each rank. The step's variables give the ranks a meeting point, unless the request has one."""
    _no_hostfile(request, "srun")
    options = [*_shape(request), *PLACEMENT, *["--label"] * (request.ranks > 1), *request.arguments]
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
    """The batch script, of fmscale or of the user, with the config as its argument; an array of jobs for a sweep."""
    _no_hostfile(request, "sbatch")
    script = request.script or Path(str(resources.files("fmscale.launch").joinpath("slurm/train.sbatch")))
    if not script.is_file():
        raise ConfigError(
            "There is no such batch script", found=str(script), remedy="Copy launch/slurm/train.sbatch and edit it."
        )
    # The script calls fmscale by name.
    environment = {**request.environment, "PATH": search_path()}
    if request.least:
        environment["PROCS"] = str(request.procs_per_node)
    array = []
    if request.elements:
        array = [f"--array=0-{len(request.elements) - 1}"]
        environment[SWEEP] = _as_lines(request.elements, script)
    options = (*_shape(request), *array, *request.arguments)
    return Launch(
        argv=(find_program("sbatch"), *options, str(script), *request.command[2:]),
        environment=environment,
        summary=f"{request.summary('sbatch')}, by {script.name}" + f", {len(request.elements)} runs" * bool(array),
        stop_by="terminate",
        detached=True,
    )


def _as_lines(elements: tuple[tuple[str, ...], ...], script: Path) -> str:
    """A line for each word, and an empty line between elements. Raises ConfigError for a script or a kernel that does
    not take them.
    """
    lines = "\n\n".join("\n".join(words) for words in elements)
    if SWEEP not in script.read_text():
        raise ConfigError(
            "The batch script knows no sweep: every element of the array would train the same run",
            found=str(script),
            remedy=f"Take over the lines about {SWEEP} from launch/slurm/train.sbatch.",
        )
    if len(lines) >= LONGEST_VARIABLE:
        found, remedy = f"{len(elements)} runs, {len(lines)} characters", "Sweep fewer values at once."
        raise ConfigError("The sweep is too long for a variable of the environment", found=found, remedy=remedy)
    return lines


def _shape(request: LaunchRequest) -> list[str]:
    if request.least:  # with a number of tasks Slurm gives the least nodes, or none
        return [f"--nodes={request.least}-{request.nodes}", f"--mincpus={request.procs_per_node}"]
    return [f"--nodes={request.nodes}", f"--ntasks={request.ranks}", f"--ntasks-per-node={request.procs_per_node}"]


def _no_hostfile(request: LaunchRequest, launcher: str) -> None:
    if request.hosts:
        raise ConfigError(
            f"{launcher} takes no hostfile: Slurm chooses the nodes",
            found=str(request.hostfile),
            remedy="Give --nodes; or name nodes to Slurm: --argument=--nodelist=node-[1-2].",
        )
