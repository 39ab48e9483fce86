"""Who listens: the sockets of a process and all below it, as the kernel lists them."""

import ipaddress
import os
import socket
import struct
from pathlib import Path

import psutil

LISTENS = "0A"


def listeners(top: int) -> dict[tuple[str, int], str]:
    """Address and port of each TCP socket on which the process `top` or one below it listens: a process that has it."""
    found: dict[tuple[str, int], str] = {}
    by_inode = _listening()
    try:
        process = psutil.Process(top)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for one in family:
        for inode in _sockets(one.pid):
            if inode in by_inode:
                found[by_inode[inode]] = _name(one)
    return found


def off_loopback(top: int) -> dict[tuple[str, int], str]:
    """Those of `listeners` that more than this machine reaches."""
    return {place: who for place, who in listeners(top).items() if not ipaddress.ip_address(place[0]).is_loopback}


def _listening() -> dict[str, tuple[str, int]]:
    """Address and port of every listening socket of this network namespace, by inode."""
    found = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] != LISTENS:
                continue
            address, port = words[1].split(":")
            # words of four bytes, each in the machine's order
            packed = b"".join(
                struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8)
            )
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


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:3])
    except psutil.Error:
        return str(process.pid)
