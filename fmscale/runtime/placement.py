"""Settles a rank on its node: the cores beside its GPU, and a folder of compiled kernels on the node's own disk."""

import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmscale.errors import ConfigError
from fmscale.runtime import variables

logger = logging.getLogger(__name__)

DEVICES = Path("/sys/bus/pci/devices")
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Variables of compilers, and the folder that each gets. Triton compiles into the home by default: on a shared home
hundreds of ranks write the same files."""


def settle(device: str, devices: Path = DEVICES) -> None:
    """Bind this rank to the cores beside its GPU, and compile on the node's disk until `variables.take_back`.

    Nothing changes on a CPU, or where the user has set the same. Raises ConfigError if others can write to the folder.
    """
    if not device.startswith("cuda"):
        return
    from torch import cuda

    gpu: Any = cuda.get_device_properties(device)
    bind(local_cpus(f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0", devices))
    unset = {name: folder for name, folder in CACHES.items() if name not in os.environ}
    if unset:
        own = own_folder(Path(tempfile.gettempdir()))
        variables.lend(**{name: str(own / folder) for name, folder in unset.items()})


def local_cpus(address: str, devices: Path = DEVICES) -> set[int]:
    """Numbers of the CPUs on the NUMA node of a PCI device, such as "0000:1b:00.0"; empty if the kernel has no list."""
    try:
        text = (devices / address / "local_cpulist").read_text().strip()
    except OSError:
        return set()
    ends = [part.partition("-") for part in text.split(",") if part]
    return {number for first, _, last in ends for number in range(int(first), int(last or first) + 1)}


def bind(cpus: set[int]) -> None:
    """Keep this process, its threads and its later children on those of `cpus` that it may use.

    A user who bound the process to other CPUs keeps them. Copies from the GPU to memory of the other socket are slow.
    """
    allowed = os.sched_getaffinity(0)
    chosen = allowed & cpus
    if not chosen or chosen == allowed:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), chosen)
        except ProcessLookupError:  # the thread has ended
            continue
    logger.info("bound to the %d CPUs beside the GPU, of %d", len(chosen), len(allowed))


def own_folder(parent: Path) -> Path:
    """Folder in `parent` that this user alone can write. Raises ConfigError if it is another's, or open to others:
    compilers load what lies there as code.
    """
    folder = parent / f"fmscale-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            "Compiled kernels would be loaded from a folder that others can write",
            found=f"{folder}, of user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
            remedy="Remove it, or set TMPDIR, or both TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR.",
        )
    return folder
