"""Common parts of the systems of `fmscale bench goodput`: text, model, batch, and the supervisor with its faults."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.clusters_restart import kill_all
from fmscale.config import ModelConfig
from fmscale.models import build

BATCH, LENGTH = 1, 64
MODEL = {"num_layers": 6, "dim": 768, "num_heads": 12, "num_kv_heads": 12, "max_seq_len": LENGTH, "tied": True}
"""42 M parameters: 510 MB of masters and moments. Steps are short beside a save, as in large runs: by
arithmetic 96 GB of an 8 B model take 60 s to storage of 1.6 GB/s, and a step of 4 M tokens 7.5 s on 64 GPUs at 400
TFLOP/s.
"""


def corpus_files() -> list[str]:
    """The standard library's source."""
    return [str(path) for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))]


def corpus_bytes() -> np.ndarray:
    """The corpus as uint8."""
    return np.concatenate([np.fromfile(path, dtype=np.uint8) for path in corpus_files()])


def plain_model(vocab_size: int) -> torch.nn.Module:
    """The model with fresh weights."""
    model = build(ModelConfig(**MODEL), vocab_size=vocab_size)  # type: ignore[arg-type]
    model.init_weights(torch.Generator().manual_seed(0))  # type: ignore[operator]
    return model


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """The end of a system under faults."""

    steps: int
    """Highest step that was reached: work that is done, without what was done twice."""
    repeated: int
    """Steps that were done again."""
    starts: int
    """Starts of the process."""
    seconds: float
    """Time from the first start."""
    step_seconds: float
    """Median time between two steps of a process."""

    @property
    def goodput(self) -> float:
        """Share of the time in which new steps were computed, at the pace of an undisturbed step."""
        return self.steps * self.step_seconds / self.seconds


def supervise(
    command: Sequence[str],
    done: Callable[[], list[tuple[int, float]]],
    faults: Sequence[float],
    seconds: float,
    folder: Path,
) -> Supervised:
    """Run `command` for `seconds`, kill all its processes at `faults` (seconds from the start), and start it again at
    once. `done` gives (step, time) of all steps so far, in their order.
    """
    began = time.time()
    starts = 0
    with (folder / "output.log").open("ab") as out:
        for end in [*faults, seconds]:
            starts += 1
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""},
            )
            try:
                process.wait(max(0.0, began + end - time.time()))
            except subprocess.TimeoutExpired:
                kill_all(process)
            else:
                raise RuntimeError(f"{command} ended by itself with {process.returncode}: {folder}/output.log")
    steps = done()
    gaps = [b[1] - a[1] for a, b in pairwise(steps) if b[0] == a[0] + 1]
    highest = max((step for step, _ in steps), default=0)
    return Supervised(
        steps=highest,
        repeated=len(steps) - len({step for step, _ in steps}),
        starts=starts,
        seconds=time.time() - began,
        step_seconds=float(np.median(gaps)) if gaps else 0.0,
    )
