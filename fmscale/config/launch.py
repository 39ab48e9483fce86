"""The section `launch`: defaults of the options of `fmscale launch`."""

from dataclasses import dataclass, field
from typing import Literal

from fmscale.config.checks import InvalidField, at_least


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Launcher, nodes and ranks. `fmscale train` ignores this section: ranks read their launcher's variables."""

    launcher: Literal["local", "torchrun", "deepspeed", "srun", "sbatch", "mpirun"] | None = None
    """Program that starts the ranks; null takes local, fmscale's own, on one node, and torchrun on several."""
    nodes: int | None = None
    """Nodes; null takes all of the hostfile, or 1."""
    procs_per_node: int | None = None
    """Ranks on each node; null takes the slots of the hostfile, one for each GPU here, or 1 without a GPU."""
    hostfile: str | None = None
    """File with a line "HOST slots=N" for each node (deepspeed, mpirun)."""
    master_port: int | None = None
    """Port on rank 0's node where ranks meet; null leaves the choice to the launcher, mostly 29500."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that every rank gets on every node, such as NCCL_SOCKET_IFNAME. Put no credentials
    here: process lists would show them. The run's record has the names alone."""
    arguments: tuple[str, ...] = ()
    """Options that the launcher gets unchanged, such as --partition=gpu for sbatch."""

    def __post_init__(self) -> None:
        at_least(self, 1, "nodes", "procs_per_node")
        if self.master_port is not None and not 1 <= self.master_port <= 65_535:
            remedy = "Give a free port of rank 0's node, or null for the launcher's own."
            raise InvalidField("master_port", "must be a port, 1 to 65535", found=self.master_port, remedy=remedy)
        for name in self.environment:
            if not name.isidentifier():
                remedy = "Use letters, digits and '_', and no digit first."
                raise InvalidField("environment", "has a name that no variable can have", found=name, remedy=remedy)
