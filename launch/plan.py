"""What a launch would start, before it starts: one command, and the environment it gets."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fmscale.launch.hostfile import Host
from fmscale.launch.ports import DEFAULT_PORT, check_port

from fmscale.errors import ConfigError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """What is to be started."""

    command: tuple[str, ...]
    """Program and arguments of every rank."""
    nodes: int = 1
    """Nodes."""
    procs_per_node: int = 1
    """Ranks on each."""
    hosts: tuple[Host, ...] = ()
    """The nodes' names, where a hostfile gave them."""
    hostfile: Path | None = None
    """That file."""
    node_rank: int | None = None
    """Number of this node, where every node is started by itself (torchrun)."""
    master_addr: str | None = None
    """Where rank 0 will be."""
    master_port: int | None = None
    """Port where the ranks meet; None takes the launcher's way."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that every rank gets."""
    arguments: tuple[str, ...] = ()
    """Options for the launcher, as they are."""
    script: Path | None = None
    """The batch script (sbatch)."""

    @property
    def ranks(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.procs_per_node


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One command that starts everything."""

    argv: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str]
    """Set on top of this process's environment."""
    summary: str
    """What it starts, in a few words."""
    stop_by: Literal["ranks", "launcher", "terminate"]
    """How ranks are asked to save and end. ranks: SIGUSR1 to each, as the launcher would die of it; launcher:
    SIGUSR1 to the launcher, which passes it on; terminate: SIGTERM to the launcher, the only one it passes on."""
    detached: bool = False
    """Whether the command may end before the run does (sbatch)."""

    def as_shell(self) -> str:
        """The plan as lines for a shell, which do the same."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return "\n".join([f"# {self.summary}", *exports, shlex.join(self.argv)])


def one_node_or_hostfile(request: LaunchRequest, launcher: str) -> None:
    """Refuse several nodes without a hostfile: such a launcher would quietly start them all here."""
    if request.nodes > 1 and not request.hosts:
        raise ConfigError(
            f"{launcher} on {request.nodes} nodes needs their names",
            remedy="Give --hostfile FILE with one line a node, such as: node-1 slots=8",
        )


def meeting_point(request: LaunchRequest) -> tuple[str, int]:
    """Host and port where the ranks meet: as given, else the first host and 29500; the port is free if here.

    Raises ConfigError if it is taken, or if other nodes would look for it on themselves.
    """
    first = request.hosts[0].name if request.nodes > 1 and request.hosts else LOOPBACK
    host = request.master_addr or first
    if request.nodes > 1 and host in ("localhost", LOOPBACK, "::1"):
        raise ConfigError(
            "The other nodes cannot reach rank 0 under a name that means themselves",
            found=host,
            remedy="Name the first host by an address that all nodes reach, or give --master-addr.",
        )
    port = DEFAULT_PORT if request.master_port is None else request.master_port
    check_port(host, port)
    return host, port


def counted(number: int, what: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def summarized(launcher: str, request: LaunchRequest) -> str:
    """ "torchrun: 2 nodes, 8 ranks on each"."""
    each = " on each" if request.nodes > 1 else ""
    return f"{launcher}: {counted(request.nodes, 'node')}, {counted(request.procs_per_node, 'rank')}{each}"
