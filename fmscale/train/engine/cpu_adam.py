"""DeepSpeed's Adam on the host, which it compiles at its first use on a machine."""

import fcntl
import logging
import time
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

EXTENSION = "cpu_adam"
STALE_SECONDS = 900.0
"""Age at which no process can still hold a lock: compiling takes a minute or two."""


def load_cpu_adam() -> Any:
    """The class DeepSpeedCPUAdam, compiled.

    torch guards a build by a file. A killed process leaves it behind, and later processes wait for it for ever. The
    lock here is released by the kernel, and lets a single process at a time look at torch's file.
    """
    folder = Path(cpp_extension._get_build_directory(EXTENSION, verbose=False))
    with open(folder / "fmscale.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        clear_stale(folder / "lock")
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
    return DeepSpeedCPUAdam


def clear_stale(lock: Path, *, pause: float = 1.0) -> None:
    """Wait until torch's lock file is gone, or remove it when no process can still hold it (STALE_SECONDS)."""
    noticed = False
    while True:
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return
        if age > STALE_SECONDS:
            logger.warning("removed %s, which is %.0f min old", lock, age / 60)
            lock.unlink(missing_ok=True)
            return
        if not noticed:
            noticed = True
            logger.warning("another process compiles DeepSpeed's CPU Adam (or was killed): waiting for %s", lock)
        time.sleep(pause)
