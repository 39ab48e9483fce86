"""Hosts that ssh reaches without a password: one real sshd on this machine, under several loopback addresses.

Linux answers on all of 127/8, so 127.0.0.2 and 127.0.0.3 are two nodes for ssh. Keys, configuration
and known hosts belong to the test: the first `ssh` on `path` reads them.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.helpers.s3_server import die_with_parent, free_ports

BINARIES = ("sshd", "ssh", "ssh-keygen", "pdsh")
START_SECONDS = 10.0

SERVER = """
Port {port}
ListenAddress 0.0.0.0
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
"""

CLIENT = """
Host *
    Port {port}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known
    StrictHostKeyChecking accept-new
    LogLevel ERROR
"""


def sshd_binary() -> str | None:
    """Full path of sshd, which requires a start by its full path; it is often not on a user's PATH."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def missing() -> str:
    """Reason why hosts cannot start here, or an empty text."""
    lacking = [name for name in BINARIES[1:] if shutil.which(name) is None]
    lacking += [] if sshd_binary() else ["sshd"]
    return f"needs {', '.join(lacking)}: apt-get install openssh-server pdsh" if lacking else ""


class SshHosts:
    """The server, while the block runs. `names` are the hosts."""

    def __init__(self, count: int = 2) -> None:
        self.names = [f"127.0.0.{number + 2}" for number in range(count)]

    def path(self, path: str) -> str:
        """A PATH whose `ssh` knows these hosts."""
        return f"{self.folder}/bin{os.pathsep}{path}"

    def __enter__(self) -> "SshHosts":
        self.folder = Path(tempfile.mkdtemp(prefix="fmscale-ssh-"))
        self.port = free_ports(1)[0]
        for key in ("host", "user"):
            subprocess.check_call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)])
        (self.folder / "sshd_config").write_text(SERVER.format(port=self.port, folder=self.folder))
        (self.folder / "ssh_config").write_text(CLIENT.format(port=self.port, folder=self.folder))
        ssh = self.folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        if os.geteuid() == 0:
            # where privileges are separated; the package makes it at boot
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = sshd_binary()
        assert server is not None
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [server, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((self.names[0], self.port), timeout=1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = (self.folder / "log").read_text(errors="replace")
                    self.__exit__()
                    raise RuntimeError(f"sshd does not answer\n{text}") from None
                time.sleep(0.02)

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
