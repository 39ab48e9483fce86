"""Ranks of this machine as processes: their ends are seen at once, also those that say nothing, such as a SIGKILL."""

import json
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class Peers:
    """The other ranks of this machine."""

    def __init__(self, rank: int, identities: Sequence[str]) -> None:
        """`identities` are those of all ranks, by rank."""
        self.descriptors: list[int] = []
        """Readable once their process has ended; the caller closes them."""
        self.gone: list[str] = []
        """Sentences on ranks that had ended by now."""
        self._names: dict[int, tuple[str, int]] = {}
        for other, (machine, host, pid) in enumerate(map(json.loads, identities)):
            if other != rank and machine == _machine():
                name = f"rank {other} on {host} (process {pid})"
                try:
                    descriptor = os.pidfd_open(pid)
                except OSError:
                    self.gone.append(f"{name} ended before the ranks had met")
                else:
                    self.descriptors.append(descriptor)
                    self._names[descriptor] = name, pid

    def end(self, descriptor: int) -> str:
        """A sentence on the end of a peer."""
        name, pid = self._names[descriptor]
        return f"{name} {_end_of(pid)}"


def identity() -> str:
    """Text by which other ranks find this process."""
    return json.dumps([_machine(), socket.gethostname(), os.getpid()])


def _machine() -> str:
    """Name of the kernel and of its space of process numbers: equal for processes that see one another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def _end_of(pid: int) -> str:
    """Words for the end of a process; only as long as its parent has not asked for its status they have that."""
    status = 0
    with suppress(OSError, IndexError):
        status = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[49])
    if number := status & 0x7F:
        reason = ", as the kernel does where memory is short" if number == signal.SIGKILL else ""
        return f"was ended by signal {number} ({signal.Signals(number).name}){reason}"
    return f"ended with status {status >> 8}" if status else "ended, its launcher knows by which signal or status"
