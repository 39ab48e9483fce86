"""A real Slurm of several nodes on this host: munged, slurmctld, and one slurmd for each node.

All of it lives in a PID namespace. Its first process dies with its parent, and takes the daemons, the jobs and their
children along. Node names resolve inside it only.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

BINARIES = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "munged", "unshare", "setpriv")
START_SECONDS = 30.0

CONFIG = """
ClusterName=fmscale
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=8
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports}] CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
"""A node may have more cores than the machine: `config_overrides` makes Slurm accept this. A requeued job is held for
the lifetime of credentials, 120 s by default.
"""

START = """
set -e
mount --bind {folder}/hosts /etc/hosts
munged --force --key-file={folder}/munge.key --socket={folder}/munge.socket --pid-file={folder}/munged.pid \
       --log-file={folder}/munged.log --seed-file={folder}/munged.seed
slurmctld
for node in {names}; do slurmd -N "$node"; done
exec sleep infinity
"""

NAMESPACE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


def missing() -> str:
    """Reason why Slurm cannot start here, or an empty text."""
    lacking = [name for name in BINARIES if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "needs root, to run jobs as another process tree"


class Slurm:
    """The cluster, while the block runs; `environment` makes srun, sbatch and scontrol talk to it."""

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = nodes
        self.environment: dict[str, str] = {}

    def __enter__(self) -> "Slurm":
        self.folder = Path(tempfile.mkdtemp(prefix="fmscale-slurm-"))
        self.folder.chmod(0o755)
        names = [f"n{number}" for number in range(1, self.nodes + 1)]
        first = _free_ports(self.nodes + 1)
        ports = f"{first + 1}-{first + self.nodes}" if self.nodes > 1 else str(first + 1)
        (self.folder / "state").mkdir()
        for name in names:
            (self.folder / f"spool.{name}").mkdir()
        hosts = [f"127.0.1.{number} {name}" for number, name in enumerate(names, 1)]
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n".join(hosts) + "\n")
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        config = self.folder / "slurm.conf"
        config.write_text(
            CONFIG.format(host=socket.gethostname(), port=first, nodes=self.nodes, ports=ports, folder=self.folder)
        )
        self.environment = {"SLURM_CONF": str(config)}
        script = START.format(folder=self.folder, names=" ".join(names))
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *NAMESPACE, "sh", "-c", script],
            env={**os.environ, **self.environment},
            stdout=(self.folder / "out").open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, timeout: float = 60.0) -> str:
        """Standard output of a Slurm command, such as scontrol."""
        return subprocess.check_output(command, env={**os.environ, **self.environment}, text=True, timeout=timeout)

    def job(self, number: int) -> dict[str, str]:
        """Slurm's fields of a job: JobState, Restarts, StdOut and more."""
        fields = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def cancel_all(self) -> None:
        """End all jobs, so that the next test finds the nodes free."""
        self.run("scancel", "--user=root")
        self._wait_until_idle()

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                if self.run("sinfo", "--noheader", "--states=idle", "--format=%D").strip() == str(self.nodes):
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                logs = [
                    f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}"
                    for log in sorted(self.folder.iterdir())
                    if log.name == "out" or log.suffix == ".log"
                ]
                raise RuntimeError("Slurm's nodes do not become idle\n" + "\n".join(logs))
            time.sleep(0.1)


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below the range that the kernel gives to clients."""
    for first in range(21_000 + os.getpid() % 5_000, 32_000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")
