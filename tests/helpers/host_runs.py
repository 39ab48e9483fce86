"""A training on the hosts of `net_hosts.py`, and the end of each of its ranks with its time."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fmscale.errors import FmscaleError
from fmscale.runtime.failure import describe_failure, first_failure
from fmscale.runtime.watched import read_watched
from tests.helpers.net_hosts import NetHosts
from tests.launch.training import FMSCALE, environment

LOOK_SECONDS = 0.05
PORT = 29_500


@dataclass(kw_only=True)
class HostRun:
    """A run in FOLDER/runs/RUN, by one launcher a host, or by one on the first host."""

    folder: Path
    run: str
    launchers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    """Launchers by host."""
    ranks: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Host and process of each rank that has been seen."""
    ended: dict[int, float] = field(default_factory=dict)
    """Monotonic time of each rank's end."""

    def look(self, hosts: NetHosts) -> None:
        """Note ranks that are there, and ranks that have ended."""
        for name in hosts.names:
            for pid in hosts.pids(name):
                if (rank := _rank(pid)) is not None:
                    self.ranks.setdefault(rank, (name, pid))
        for rank, (_, pid) in self.ranks.items():
            if rank not in self.ended and not _lives(pid):
                self.ended[rank] = time.monotonic()

    def steps(self) -> list[int]:
        """Step of each rank, as rank 0's watchdog wrote it last; empty before that."""
        try:
            return [state["step"] or 0 for state in read_watched(self.folder / "runs" / self.run)[1]]
        except FmscaleError:
            return []

    def said(self, name: str) -> str:
        """Output of the launcher on a host, and of the host's ranks that it did not show."""
        return (self.folder / f"{self.run}.{name}.log").read_text(errors="replace")

    def failure(self) -> str:
        """The first failure on record, as `fmscale launch` shows it; empty without a failure."""
        report = first_failure(self.folder / "runs" / self.run)
        return describe_failure(report) if report else ""

    def until(self, hosts: NetHosts, done: Callable[[], bool], seconds: float) -> bool:
        """Look until `done`; False if it is not within so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            self.look(hosts)
            if done():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Kill the launchers on this side of the namespaces; what runs inside ends with the hosts."""
        for process in self.launchers.values():
            process.kill()
            process.wait()


def launch(
    hosts: NetHosts,
    folder: Path,
    run: str,
    launcher: str,
    settings: Sequence[str] = (),
    options: Sequence[str] = (),
    variables: Mapping[str, Mapping[str, str]] = {},
    nodes: str = "",
) -> HostRun:
    """Start FOLDER/run.yaml with a rank on each host. `variables`: environment of a launcher; `nodes`: a range of their
    number, for torchrun.
    """
    started = HostRun(folder=folder, run=run)
    # Relative paths would lead past a host's own mounts: nsenter opens the folder in those of the machine.
    words = [FMSCALE, "launch", str(folder / "run.yaml"), f"train.run={run}", *settings, "--with", launcher]
    if launcher == "torchrun":
        many = ["--nodes", nodes or str(len(hosts.names)), "--procs-per-node", "1"]
        meeting = [*many, "--master-addr", hosts.names[0], "--master-port", str(PORT), *options]
        commands = {name: [*words, *meeting, "--node-rank", str(number)] for number, name in enumerate(hosts.names)}
    else:
        hostfile = folder / "hosts"
        hostfile.write_text("".join(f"{name} slots=1\n" for name in hosts.names))
        commands = {hosts.names[0]: [*words, "--hostfile", str(hostfile), *options]}
    for name, command in commands.items():
        log = (folder / f"{run}.{name}.log").open("wb")
        with log:
            started.launchers[name] = subprocess.Popen(
                [*hosts.on(name), *command],
                cwd=folder,
                env=environment(PATH=hosts.path(environment()["PATH"]), **variables.get(name, {})),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    return started


def _rank(pid: int) -> int | None:
    """Number of a process that is a rank of `fmscale train`."""
    with suppress(OSError, ValueError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if FMSCALE.encode() in command[:2] and b"train" in command[:3]:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return next((int(text[5:]) for text in variables if text.startswith(b"RANK=")), None)
    return None


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False
