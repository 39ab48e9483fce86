"""Hosts of this machine as a cluster has them: each has its own network, processes, name and mounts.

A host is a set of namespaces whose first process is `sleep`: SIGKILL to it ends all that runs on the host, as when the
host loses its power. The hosts' links meet at a bridge in a network of its own, so that the machine's stays as it is,
and all of it is gone with its processes. Files are those of the machine, as on a shared file system.
"""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.helpers.s3_server import die_with_parent
from tests.helpers.ssh_hosts import CLIENT, SERVER, sshd_binary

SPACES = ("--net", "--mount", "--uts", "--time", "--pid", "--fork", "--kill-child", "--mount-proc")
SSH_PORT = 22
START_SECONDS = 10.0
GROUPS = Path("/sys/fs/cgroup/cpu")
SECOND_US = 1_000_000

BRIDGE = "ip link set lo up; ip link add bridge type bridge; ip link set bridge up; echo up; exec sleep infinity"
HOST = """
set -e
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
ip link set lo up
echo up
exec sleep infinity
"""


def refused() -> str:
    """Reason why the kernel makes no such host, or an empty text."""
    if lacking := [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]:
        return f"needs {', '.join(lacking)}: apt-get install util-linux iproute2"
    made = subprocess.run(
        ["unshare", *SPACES, "sh", "-ec", BRIDGE.partition("echo")[0]], capture_output=True, text=True
    )
    return f"the kernel refuses a network of its own: {made.stderr.strip()}" if made.returncode else ""


class NetHosts:
    """The hosts, while the block runs: NAME1, NAME2, ..., at the addresses 10.77.0.1, 10.77.0.2, ..."""

    def __init__(self, count: int = 2, *, ssh: bool = False) -> None:
        self.names = [f"host{number + 1}" for number in range(count)]
        self._ssh = ssh
        self._processes: list[subprocess.Popen[str]] = []
        self._groups: list[Path] = []

    def __enter__(self) -> "NetHosts":
        self.folder = Path(tempfile.mkdtemp(prefix="fmscale-hosts-"))
        try:
            self._bridge = self._first_process(["unshare", "--net", "--fork", "--kill-child", "sh", "-ec", BRIDGE])
            entries = [f"10.77.0.{number} {name}" for number, name in enumerate(self.names, 1)]
            (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "\n".join(entries) + "\n")
            (self.folder / "resolv.conf").write_text("")  # no name server, so that unknown names fail at once
            script = HOST.format(name="{name}", folder=self.folder)
            self._pids = {}
            for number, name in enumerate(self.names, 1):
                # Each has booted at another time, by its own clock.
                clocks = ["--monotonic", str(1000 * number), "--boottime", str(1000 * number)]
                command = ["unshare", *SPACES, *clocks, "sh", "-ec", script.format(name=name)]
                self._pids[name] = self._first_process(command)
            self._spaces = {name: os.readlink(f"/proc/{pid}/ns/pid") for name, pid in self._pids.items()}
            for number, name in enumerate(self.names, 1):
                self._on_bridge(f"ip link add {name} type veth peer name eth0 netns {self._pids[name]}")
                self._on_bridge(f"ip link set {name} master bridge up")
                self.run(name, f"ip addr add 10.77.0.{number}/24 dev eth0; ip link set eth0 up")
            if self._ssh:
                self._serve_ssh()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for group in self._groups:
            while (group / "cgroup.procs").read_text():  # what ran there is still ending
                time.sleep(0.01)
            group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def on(self, name: str) -> list[str]:
        """Words in front of a command that runs on a host."""
        return ["nsenter", "--all", "--target", str(self._pids[name]), "--wd=.", "--"]

    def run(self, name: str, script: str) -> str:
        """Output of a shell script on a host."""
        return subprocess.check_output([*self.on(name), "sh", "-ec", script], text=True)

    def kill(self, name: str) -> None:
        """SIGKILL to all processes of a host, at once: the kernel sends it when the first process ends."""
        os.kill(self._pids[name], signal.SIGKILL)

    def cut(self, name: str) -> None:
        """Take a host's link down."""
        self._on_bridge(f"ip link set {name} down")

    def throttle(self, name: str, share: float) -> None:
        """Leave a host so much of one core, in one piece a second."""
        group = GROUPS / f"{self.folder.name}-{name}"
        group.mkdir()
        self._groups.append(group)
        # The kernel gives no group less than 1 ms of a period, and no period is longer than this.
        (group / "cpu.cfs_period_us").write_text(str(SECOND_US))
        (group / "cpu.cfs_quota_us").write_text(str(int(share * SECOND_US)))
        for pid in self.pids(name):
            (group / "cgroup.procs").write_text(str(pid))

    def pids(self, name: str) -> list[int]:
        """Processes of a host other than its first, as this machine numbers them."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.readlink(entry / "ns" / "pid") == self._spaces[name]:
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if pid != self._pids[name]]

    def signal(self, name: str, number: int) -> None:
        """Send a signal to each process of a host but its first."""
        for pid in self.pids(name):
            os.kill(pid, number)

    def path(self, path: str) -> str:
        """A PATH whose `ssh` knows these hosts."""
        return f"{self.folder}/bin{os.pathsep}{path}"

    def _on_bridge(self, command: str) -> None:
        subprocess.check_call(["nsenter", "--net", "--target", str(self._bridge), *shlex.split(command)])

    def _first_process(self, command: list[str]) -> int:
        """Start a set of namespaces, and wait until it is up: its first process."""
        # unshare complains on stderr of a first process that was killed.
        with (self.folder / "spaces.log").open("a") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=die_with_parent,
            )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", (self.folder / "spaces.log").read_text()
        process.stdout.close()
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())

    def _serve_ssh(self) -> None:
        """An sshd on each host, with keys of its own."""
        for key in ("host", "user"):
            subprocess.check_call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)])
        for name, text in (("sshd_config", SERVER), ("ssh_config", CLIENT)):
            (self.folder / name).write_text(text.format(port=SSH_PORT, folder=self.folder))
        ssh = self.folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for name in self.names:
            self.run(name, f"{sshd_binary()} -f {self.folder}/sshd_config -E {self.folder}/log.{name}")
            deadline = time.monotonic() + START_SECONDS
            while not self.run(name, f"ss -ltn 'sport = :{SSH_PORT}'").count("LISTEN"):
                assert time.monotonic() < deadline, (self.folder / f"log.{name}").read_text()
