"""A launch before its start: one command and its environment."""

import errno
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fmscale.launch.hostfile import Host

from fmscale.errors import ConfigError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29_500
"""Default of torchrun and deepspeed."""
SAVE_SECONDS = 300
"""Time for ranks to save after a signal to their agent, which then kills them; torchrun's default is 30 s."""


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """The ranks to start, with the user's options."""

    command: tuple[str, ...]
    """Program and arguments of every rank."""
    nodes: int = 1
    """Number of nodes; the most, if it may change."""
    least: int | None = None
    """Least number of nodes, if it may change."""
    procs_per_node: int = 1
    """Ranks on each node."""
    hosts: tuple[Host, ...] = ()
    """Hosts of the hostfile, if there is a hostfile."""
    hostfile: Path | None = None
    """Path of the hostfile."""
    node_rank: int | None = None
    """Number of this node, for a launcher that is started on every node (torchrun)."""
    master_addr: str | None = None
    """Address of rank 0."""
    master_port: int | None = None
    """Port where the ranks meet; None leaves the choice to the launcher."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that every rank gets."""
    arguments: tuple[str, ...] = ()
    """Options for the launcher, unchanged."""
    script: Path | None = None
    """Batch script (sbatch)."""
    elements: tuple[tuple[str, ...], ...] = ()
    """Overrides of each run of a sweep, which sbatch queues as an array."""
    logs: Path = Path("logs")
    """Folder for the output of each rank, where the launcher shows the first rank of a node alone."""

    @property
    def ranks(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.procs_per_node

    def summary(self, launcher: str) -> str:
        """A line for people: "torchrun: 2 nodes, 8 ranks on each"."""
        least = f"{self.least} to " if self.least else ""
        nodes = f"{least}{self.nodes} node" + "s" * (self.nodes != 1)
        ranks = f"{self.procs_per_node} rank" + "s" * (self.procs_per_node != 1)
        return f"{launcher}: {nodes}, {ranks}" + " on each" * (self.nodes > 1)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One command that starts all ranks."""

    argv: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str]
    """Variables set on top of this process's environment."""
    summary: str
    """A line about the launch, for people."""
    stop_by: Literal["ranks", "launcher", "terminate", "command"]
    """Way to ask ranks to save and end. ranks: SIGUSR1 to each, as the launcher would die of it; launcher:
    SIGUSR1 to the launcher, which passes it on; terminate: SIGTERM to the launcher, as it passes no other signal on;
    command: `ask`."""
    ask: tuple[str, ...] = ()
    """Command that asks ranks on other hosts to save and end; its status is not 0 if it finds none."""
    detached: bool = False
    """True if the command may end before the run does (sbatch)."""

    def as_shell(self) -> str:
        """Shell commands that start the same launch."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return "\n".join([f"# {self.summary}", *exports, shlex.join(self.argv)])


def one_node_or_hostfile(request: LaunchRequest, launcher: str) -> None:
    """Refuse several nodes without a hostfile: the launcher would start all ranks on this node without a warning."""
    if request.nodes > 1 and not request.hosts:
        raise ConfigError(
            f"{launcher} on {request.nodes} nodes needs their names",
            remedy="Give --hostfile FILE with one line a node, such as: node-1 slots=8",
        )


def meeting_point(request: LaunchRequest) -> tuple[str, int]:
    """Host and port where the ranks meet: from the request, or else the first host and 29500.

    Raises ConfigError if the port is in use on this host, or if several nodes would meet at a loopback name.
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
    if not _is_free(host, port):
        raise ConfigError(
            "The port where the ranks meet is in use",
            found=f"{host}:{port}",
            remedy=f"Another run may have it. Give a free port: --master-port {_free_port(host, port)}.",
        )
    return host, port


def _is_free(host: str, port: int) -> bool:
    """True unless `port` is in use here; the port of another host counts as free, and rank 0 checks it there."""
    with socket.socket() as probe:
        # As for the ranks' store, a port that a run left in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _free_port(host: str, taken: int) -> int:
    """The next free port; the kernel would choose a port of the range that it also gives to clients."""
    candidates = (*range(taken + 1, 65_536), *range(1_024, taken))
    return next((port for port in candidates if _is_free(host, port)), taken)
