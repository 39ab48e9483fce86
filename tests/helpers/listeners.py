"""Listening sockets of a process and its descendants, from the kernel's lists."""

import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

import psutil

LISTENS = "0A"


Place = tuple[str, int]
"""Address and port."""


def listeners(top: int) -> dict[Place, set[str]]:
    """Places where the process `top` and its descendants listen for TCP, with their commands."""
    found: dict[Place, set[str]] = {}
    places = _listening()
    try:
        process = psutil.Process(top)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for one in family:
        for inode in _sockets(one.pid):
            if inode in places:
                found.setdefault(places[inode], set()).add(_command(one))
    return found


def off_loopback(found: Mapping[Place, set[str]]) -> dict[Place, set[str]]:
    """Places that other machines reach, except those of an mpirun."""
    return {
        place: commands
        for place, commands in found.items()
        if not ipaddress.ip_address(place[0]).is_loopback
        if not any(command.partition(" ")[0].endswith("mpirun") for command in commands)
    }


def other_interface() -> str:
    """An interface that the network reaches, or loopback. A run on one node must never listen on it."""
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET and not ipaddress.ip_address(one.address).is_loopback:
                return str(name)
    return socket.if_indextoname(1)


def _listening() -> dict[str, Place]:
    """Address and port of every listening socket of this network namespace, by inode."""
    found = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] != LISTENS:
                continue
            address, port = words[1].split(":")
            # words of four bytes, each in the machine's order
            packed = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
            found[words[9]] = (socket.inet_ntop(family, packed), int(port, 16))
    return found


def _sockets(pid: int) -> list[str]:
    """Inodes of the process's sockets."""
    found = []
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                found.append(target[8:-1])
    except OSError:
        pass  # it ended meanwhile
    return found


def _command(process: psutil.Process) -> str:
    try:
        words: list[str] = process.cmdline()[:3]
        return " ".join(words)
    except psutil.Error:
        return str(process.pid)
