"""Properties of a host that a run needs, and whose lack shows late: limits, shared memory, name, disks, clock."""

import ctypes
import ipaddress
import os
import resource
import shutil
import socket
import tempfile
from pathlib import Path

import psutil

from fmscale.errors import ConfigError
from fmscale.runtime.placement import own_folder
from fmscale.store.doctor.advice import NETWORK_FILE_SYSTEMS
from fmscale.store.doctor.probe import file_system_type
from fmscale.train.machine.finding import Finding

OPEN_FILES = 16_384
"""A rank of 512 has a gloo connection to each other rank in two groups: 1,022, beside the store's and its files."""
PROCESSES = 4096
SHARED_MEMORY = 1 << 30
"""Bytes. NCCL's ranks on a node exchange data through /dev/shm: a container has 64 MiB by default."""
FREE_DISK = 5 << 30
TIME_ERROR = 5
"""State of adjtimex(2) for a clock that nothing corrects."""


def host_findings() -> list[Finding]:
    """All findings of this file."""
    pids = Path("/sys/fs/cgroup/pids.max")
    name = socket.gethostname()
    return [
        processor(),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)),
        locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], Path("/sys/class/infiniband")),
        processes(resource.getrlimit(resource.RLIMIT_NPROC)[0], pids.read_text() if pids.exists() else "max"),
        shared_memory(Path("/dev/shm")),
        host_name(name, addresses_of(name), os.environ.get("GLOO_SOCKET_IFNAME", "")),
        disk("temporary files", Path(tempfile.gettempdir())),
        compiled_kernels(Path(tempfile.gettempdir())),
        disk("caches", Path.home() / ".cache"),
        clock(clock_state()),
    ]


def processor() -> Finding:
    """Cores and memory that this process may use."""
    memory = psutil.virtual_memory()
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    found = f"{cores} of {all_cores} cores, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory free"
    return Finding(name="processor", status="ok", found=found)


def open_files(limits: tuple[int, int]) -> Finding:
    """Limit of open files, (soft, hard)."""
    soft, hard = limits
    found = f"at most {_limit(soft)}, {_limit(hard)} if raised"
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding(name="open files", status="ok", found=found)
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    way = f"ulimit -n {OPEN_FILES}" if enough else "raise nofile in /etc/security/limits.conf or in the service"
    remedy = f"For runs of hundreds of ranks: {way}. Each rank has connections to all others."
    return Finding(name="open files", status="warn", found=found, remedy=remedy)


def locked_memory(soft: int, infiniband: Path) -> Finding:
    """Limit of locked memory, which InfiniBand needs; `infiniband` lists the adapters."""
    adapters = sorted(path.name for path in infiniband.iterdir()) if infiniband.is_dir() else []
    found = f"at most {_limit(soft, 'bytes')}, InfiniBand: {', '.join(adapters) or 'none'}"
    if adapters and soft != resource.RLIM_INFINITY:
        remedy = (
            "Set memlock to unlimited (limits.conf, the service, docker --ulimit memlock=-1): NCCL pins its buffers."
        )
        return Finding(name="locked memory", status="warn", found=found, remedy=remedy)
    return Finding(name="locked memory", status="ok", found=found)


def processes(soft: int, pids: str) -> Finding:
    """Limit of processes and threads: of the user, and of the control group (`pids.max`)."""
    group = int(pids) if pids.strip().isdecimal() else resource.RLIM_INFINITY
    given = [limit for limit in (soft, group) if limit != resource.RLIM_INFINITY]
    least = min(given, default=resource.RLIM_INFINITY)
    found = f"at most {_limit(least)}"
    if given and least < PROCESSES:
        remedy = f"Raise it to {PROCESSES} or more (ulimit -u, docker --pids-limit): a rank has tens of threads."
        return Finding(name="processes", status="warn", found=found, remedy=remedy)
    return Finding(name="processes", status="ok", found=found)


def shared_memory(folder: Path) -> Finding:
    """Size of /dev/shm."""
    if not folder.is_dir():
        remedy = "Mount a tmpfs there: NCCL needs it between the ranks of a node."
        return Finding(name="shared memory", status="fail", found=f"there is no {folder}", remedy=remedy)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB free in {folder}"
    if usage.free < SHARED_MEMORY:
        remedy = "docker --ipc=host or --shm-size=16g; in Kubernetes an emptyDir of medium Memory at /dev/shm."
        return Finding(name="shared memory", status="warn", found=found, remedy=remedy)
    return Finding(name="shared memory", status="ok", found=found)


def addresses_of(name: str) -> list[str]:
    """Addresses of a host name here; empty if it does not resolve."""
    try:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]).partition("%")[0] for entry in entries})


def host_name(name: str, addresses: list[str], interface: str) -> Finding:
    """The address that gloo tells the other ranks: that of the host name, or of `interface` if it is set."""
    found = f"{name} is {', '.join(addresses) or 'unknown'}" + (f", gloo takes {interface}" if interface else "")
    if interface or (addresses and not all(ipaddress.ip_address(one).is_loopback for one in addresses)):
        return Finding(name="host name", status="ok", found=found)
    remedy = (
        "Other nodes cannot reach this one under that name: correct /etc/hosts, or put GLOO_SOCKET_IFNAME and "
        "NCCL_SOCKET_IFNAME into launch.environment. One node alone does not need it."
    )
    return Finding(name="host name", status="warn", found=found, remedy=remedy)


def disk(name: str, folder: Path) -> Finding:
    """Room in a folder, or in the nearest of its parents that exists."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    kind, free = file_system_type(place), shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free in {folder} ({kind})"
    if free < FREE_DISK:
        remedy = f"Free {FREE_DISK >> 30} GiB, or name another place (TMPDIR, XDG_CACHE_HOME)."
        return Finding(name=name, status="warn", found=found, remedy=remedy)
    return Finding(name=name, status="ok", found=found)


def compiled_kernels(parent: Path) -> Finding:
    """Folder where ranks on GPUs compile; it must be this user's own, and on a disk of the node."""
    try:
        folder, kind = own_folder(parent), file_system_type(parent)
    except (ConfigError, OSError) as error:
        remedy = getattr(error, "remedy", "") or "Set TMPDIR to a folder of yours on this node's disk."
        return Finding(name="compiled kernels", status="fail", found=str(error), remedy=remedy)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        remedy = "Set TMPDIR to a disk of this node: ranks of all nodes would compile into one folder."
        return Finding(name="compiled kernels", status="warn", found=f"{folder} ({kind})", remedy=remedy)
    return Finding(name="compiled kernels", status="ok", found=f"{folder} ({kind})")


def clock_state() -> int:
    """State of the kernel's clock by adjtimex(2): 5 if nothing corrects it, -1 if the kernel does not say."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))


def clock(state: int) -> Finding:
    """The clock: object stores refuse requests of a clock that is 15 minutes off."""
    if state == TIME_ERROR:
        remedy = "Start chronyd, ntpd or systemd-timesyncd: object stores refuse clocks that are minutes off."
        return Finding(name="clock", status="warn", found="no time service corrects it", remedy=remedy)
    found = "corrected by a time service" if state >= 0 else "the kernel does not say"
    return Finding(name="clock", status="ok" if state >= 0 else "skip", found=found)


def _limit(value: int, unit: str = "") -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,} {unit}".strip()
