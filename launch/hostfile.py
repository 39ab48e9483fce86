"""A hostfile: one "HOST slots=N" a line, as deepspeed and Open MPI read it. Other lines are refused.

deepspeed's launcher goes on with this node alone if its hostfile is missing; here a missing hostfile is an error.
"""

import re
from pathlib import Path
from typing import NamedTuple

from fmscale.errors import ConfigError

LINE = re.compile(r"(?P<host>[^\s=:,#]+)\s+slots=(?P<slots>\d+)")
FORM = "Write one host a line, such as: node-1 slots=8"


class Host(NamedTuple):
    """A node that ssh reaches."""

    name: str
    """Name or address for ssh and for the other nodes."""
    slots: int
    """Ranks that the node may run."""


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts in their order; the first has rank 0. Raises ConfigError with file:line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The hostfile {path} cannot be read",
            found=getattr(error, "strerror", None) or str(error),
            remedy=f"Give the path of a file. {FORM}",
        ) from error
    hosts: dict[str, Host] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        match = LINE.fullmatch(entry)
        if not match:
            raise ConfigError(f"{path}:{number}: not a host with its slots", found=entry, remedy=FORM)
        name, slots = match["host"], int(match["slots"])
        if not slots:
            raise ConfigError(
                f"{path}:{number}: {name} has no slots", found=entry, remedy="Give 1 or more, or remove the line."
            )
        if name in hosts:
            raise ConfigError(
                f"{path}:{number}: {name} is listed before",
                found=f"line {lines[name]} and line {number}",
                remedy="Keep one line, with the sum of the slots.",
            )
        hosts[name], lines[name] = Host(name=name, slots=slots), number
    if not hosts:
        raise ConfigError(f"{path} lists no host", remedy=FORM)
    return tuple(hosts.values())


def choose_hosts(
    hosts: tuple[Host, ...], nodes: int | None, procs_per_node: int | None, place: Path
) -> tuple[tuple[Host, ...], int]:
    """The first `nodes` hosts (None: all) and the ranks on each (None: its slots, which must be equal).

    Raises ConfigError for too few hosts or slots, and for slots that differ.
    """
    if nodes is not None and nodes > len(hosts):
        raise ConfigError(
            f"{place} has {len(hosts)} hosts for {nodes} nodes",
            found=", ".join(host.name for host in hosts),
            remedy=f"Add hosts, or take --nodes {len(hosts)}.",
        )
    chosen = hosts[:nodes]
    fewest = min(chosen, key=lambda host: host.slots)
    if procs_per_node is None:
        if any(host.slots != fewest.slots for host in chosen):
            raise ConfigError(
                f"The hosts of {place} have different numbers of slots",
                found=", ".join(f"{host.name}: {host.slots}" for host in chosen),
                remedy=f"Say how many ranks each runs: --procs-per-node {fewest.slots} or fewer.",
            )
        procs_per_node = fewest.slots
    if procs_per_node > fewest.slots:
        raise ConfigError(
            f"{place} gives {fewest.name} {fewest.slots} slots for {procs_per_node} ranks",
            remedy=f"Take --procs-per-node {fewest.slots} or fewer, or give the host more slots.",
        )
    return chosen, procs_per_node
