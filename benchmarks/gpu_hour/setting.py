"""A step and the place where its processes run."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_hour.jobs import Job

AT_ONCE = max(2, min(8, (os.cpu_count() or 1) // 2))
"""Small runs side by side: they wait for the host, not for the GPU."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Part of an hour."""

    name: str
    """Number in the records and in --only."""
    what: str
    """Description."""
    least: float
    """Seconds below which it is not started."""
    most: float
    """Seconds that it may take."""
    jobs: tuple[Job, ...]
    """Its processes, the most important first."""
    at_once: int = 1
    """Number of parallel processes."""
    disk: int = 0
    """Bytes of free disk that it needs."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Place where the steps run."""

    python: str
    """Interpreter of the jobs."""
    scratch: Path
    """Folder for the store, runs and caches."""
    dry: bool
    """True for tiny steps on the CPU."""

    @property
    def store(self) -> str:
        """The corpus."""
        return str(self.scratch / "store")

    def job(
        self, name: str, module: str, *words: str, seconds: float, device: str = "", at_once: int = 1,
        kernels: bool = False,
    ) -> Job:  # fmt: skip
        """A process of this checkout; `device` is for DeepSpeed, which otherwise chooses a device itself. Those that
        are for `kernels` run without a GPU under Triton's interpreter.
        """
        environment = {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            # 8 runs with a worker for every core would spend the step on starting workers.
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // at_once)),
            "TORCH_EXTENSIONS_DIR": str(self.scratch / "extensions"),
            **({"DS_ACCELERATOR": device} if device else {}),
            **({"TRITON_INTERPRET": "1"} if self.dry and kernels else {}),
        }
        # The times are a GPU's; the CPU of a busy machine may take several times as long.
        seconds = math.inf if self.dry else seconds
        return Job(name=name, command=(self.python, "-m", module, *words), seconds=seconds, environment=environment)

    def run(
        self, name: str, config: str, *overrides: str, device: str, seconds: float, at_once: int = 1,
        options: Sequence[str] = (), killed_after: int = 0,
    ) -> Job:  # fmt: skip
        """A training run with its own name, folder and run in the store; `options` are those of `train_job`."""
        backend = ("--backend=aot_eager",) if self.dry else ()
        own = (f"train.run={name}", f"train.folder={self.scratch / 'runs'}", f"store.url={self.store}")
        words = (*options, *backend, config, *own, f"train.device={device}", *overrides)
        module = "benchmarks.gpu_hour.train_job"
        if killed_after:
            module, words = "benchmarks.gpu_hour.kill_job", (str(killed_after), *words)
        return self.job(name, module, *words, seconds=seconds, device=device, at_once=at_once)

    @property
    def device(self) -> str:
        """Device of the runs."""
        return "cpu" if self.dry else "cuda"
