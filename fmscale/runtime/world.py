"""Place of this process among the run's processes, read from its launcher's variables.

torchrun, deepspeed and our own agent (RANK, ...), mpirun of Open MPI (OMPI_*) and MPICH or Intel MPI (PMI_*, MPI_*),
srun (SLURM_* of a step), or no launcher. Incomplete or contradictory variables are refused: a wrong guess would show
hours later as a hang, or as ranks that all train the same samples.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fmscale.errors import ConfigError

ROUND = "FMSCALE_ROUND"
"""Variable by which `fmscale launch` numbers the meetings of nodes that may come and go."""
Launcher = Literal["torchrun", "mpirun", "srun", "none"]


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place."""

    rank: int = 0
    """Number of this process, 0 <= rank < world_size."""
    world_size: int = 1
    """Processes of the run."""
    local_rank: int = 0
    """Number of this process on its node."""
    local_size: int = 1
    """Processes of the run on this node."""
    node: int = 0
    """Number of this node. If the launcher does not give it, ranks are taken to fill node after node."""
    launcher: Launcher = "none"
    """Family of variables that was read; deepspeed counts as torchrun."""
    master: tuple[str, int] | None = None
    """Host and port of the meeting point; None for a single process, and if the ranks choose a port over MPI."""
    hosted: bool = False
    """True if the launcher itself (torchrun's agent) serves that port, and rank 0 only connects."""
    meeting: int | None = None
    """File descriptor of a socket bound to that port, which rank 0 has from the launcher `local`."""
    attempt: int = 0
    """Number of restarts by the launcher, or of meetings before this one."""
    elastic: bool = False
    """True if the launcher starts the ranks again when a node comes or is lost."""
    notice: str = ""
    """Warning for the user about the environment; usually empty."""

    @property
    def on_one_node(self) -> bool:
        """True if all processes of the run are on this node."""
        return self.local_size == self.world_size


class _Family(NamedTuple):
    """The variables of one launcher."""

    name: str
    launcher: Launcher
    rank: str
    world_size: str
    local_rank: str
    local_size: str

    @property
    def variables(self) -> tuple[str, ...]:
        return self[2:]


TORCHRUN = _Family("torchrun or deepspeed", "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OPEN_MPI = _Family(
    "Open MPI's mpirun",
    "mpirun",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
MPICH = _Family("MPICH's mpirun", "mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
SRUN = _Family("srun", "srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
MEETING = "FMSCALE_MEETING"
"""Set for every rank by the launcher `local`: the number of rank 0's socket, and nothing for the others."""
UNSET_ALL = "Unset them to run alone, or start through the launcher."


def read_world(environ: Mapping[str, str] = os.environ) -> World:
    """The world that the environment describes.

    An inner launcher hides an outer launcher: torchrun or deepspeed started by srun or mpirun, mpirun by srun.
    Raises ConfigError with the names of variables that are half set, malformed or contradictory.
    """
    # Deepspeed's launcher has names of its own for two of torchrun's variables.
    names = {"LOCAL_SIZE": "LOCAL_WORLD_SIZE", "CROSS_RANK": "GROUP_RANK"}
    environ = {**{names[name]: environ[name] for name in names if name in environ}, **environ}
    torch = _read(TORCHRUN, environ, TORCHRUN.variables[:3])
    if torch and any(sign in environ for sign in ("TORCHELASTIC_RUN_ID", "CROSS_SIZE", MEETING)):
        return _finish(torch, environ)
    open_mpi = _read(OPEN_MPI, environ, OPEN_MPI.variables)
    in_step = SRUN.world_size in environ
    mpich = _read(MPICH, environ, MPICH.variables[2:] if in_step else MPICH.variables)
    places = [(f, w) for f, w in ((TORCHRUN, torch), (OPEN_MPI, open_mpi), (MPICH, mpich)) if w]
    for other in places[1:]:
        _agree(places[0], other)
    if places:
        return _finish(places[0][1], environ)
    if in_step and (step := _read(SRUN, environ, SRUN.variables)):
        if MPICH.rank in environ:
            _agree((SRUN, step), (MPICH, replace(step, rank=_integer(environ, MPICH.rank))))
        return _finish(step, environ)
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks not in ("", "1"):
        return World(notice=f"The Slurm job has {tasks} tasks; this process runs alone. Use srun to start all.")
    return World()


def _read(family: _Family, environ: Mapping[str, str], signs: tuple[str, ...]) -> World | None:
    """The world by one launcher's variables; None if no variable of `signs` is set."""
    if not any(name in environ for name in signs):
        return None
    missing = [name for name in family.variables if name not in environ]
    if missing:
        raise ConfigError(
            f"The environment has half of what {family.name} sets: {', '.join(missing)} not set",
            found={name: environ[name] for name in family.variables if name in environ},
            remedy=UNSET_ALL,
        )
    rank, size, local_rank = (_integer(environ, name) for name in family.variables[:3])
    if family is SRUN:
        node = _integer(environ, "SLURM_NODEID")
        local_size = _tasks_on_node(environ[family.local_size], node)
    else:
        local_size = _integer(environ, family.local_size)
        node = (rank - local_rank) // local_size if local_size else 0
        if family is TORCHRUN and "GROUP_RANK" in environ:
            node = _integer(environ, "GROUP_RANK")
    if not (rank < size and local_rank < local_size <= size):
        raise ConfigError(
            f"The variables of {family.name} contradict one another",
            found={name: environ[name] for name in family.variables},
            remedy="A rank is below its size, and a node has no more ranks than the world. " + UNSET_ALL,
        )
    return World(
        rank=rank, world_size=size, local_rank=local_rank, local_size=local_size, node=node, launcher=family.launcher
    )


def _agree(first: tuple[_Family, World], second: tuple[_Family, World]) -> None:
    """Refuse two launchers' variables that mean different places."""
    (a, world_a), (b, world_b) = first, second
    if (world_a.rank, world_a.world_size) != (world_b.rank, world_b.world_size):
        found = {a.rank: world_a.rank, a.world_size: world_a.world_size}
        raise ConfigError(
            f"The variables of {a.name} and of {b.name} disagree",
            found=found | {b.rank: world_b.rank, b.world_size: world_b.world_size},
            remedy=f"Unset {', '.join(a.variables)} or {', '.join(b.variables)}.",
        )


def _finish(world: World, environ: Mapping[str, str]) -> World:
    """`world` with the meeting point."""
    names = [name for name in ("MASTER_ADDR", "MASTER_PORT") if environ.get(name)]
    if len(names) == 1 or (not names and world.launcher == "torchrun" and world.world_size > 1):
        raise ConfigError(
            "MASTER_ADDR and MASTER_PORT, where the processes meet, must both be set",
            found={name: environ[name] for name in names} or None,
            remedy="Set both to rank 0's host and a free port there.",
        )
    master = None
    if names:
        master = (environ["MASTER_ADDR"], _integer(environ, "MASTER_PORT"))
    elif world.launcher == "srun" and "SLURM_STEP_NODELIST" in environ:
        job = _integer(environ, "SLURM_JOB_ID") + _integer(environ, "SLURM_STEP_ID")
        master = (_first_host(environ["SLURM_STEP_NODELIST"]), 20_000 + job % 10_000)
    return replace(
        world,
        master=master,
        hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        meeting=_integer(environ, MEETING) if environ.get(MEETING) else None,
        attempt=_integer(environ, ROUND if ROUND in environ else "TORCHELASTIC_RESTART_COUNT", "0"),
        elastic=ROUND in environ,
    )


def _integer(environ: Mapping[str, str], name: str, default: str = "") -> int:
    text = environ.get(name, default)
    if not text.isdecimal():
        raise ConfigError(f"{name} must be a whole number, 0 or more", found=text, remedy=UNSET_ALL)
    return int(text)


def _tasks_on_node(text: str, node: int) -> int:
    """Slurm's tasks per node, such as "4(x2),3", at one node."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ConfigError(f"{SRUN.local_size} is not understood", found=text, remedy=UNSET_ALL)
        counts += [int(match[1])] * int(match[2] or 1)
    if node >= len(counts):
        found, remedy = {"SLURM_NODEID": node, SRUN.local_size: text}, UNSET_ALL
        raise ConfigError(f"SLURM_NODEID and {SRUN.local_size} contradict one another", found=found, remedy=remedy)
    return counts[node]


def _first_host(nodelist: str) -> str:
    """The first host of Slurm's "gpu[007-012,20],cpu1"."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodelist)
    if not match:
        raise ConfigError("SLURM_STEP_NODELIST is not understood", found=nodelist, remedy=UNSET_ALL)
    return match[1] + (match[2] or "") + (match[3] or "")
