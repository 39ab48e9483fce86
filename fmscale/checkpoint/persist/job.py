"""Job of the persist process: one rank's part of one checkpoint; it crosses to the process as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from fmscale.checkpoint.format.layout import FileLayout, FileRange, Tensor, plan_layout
from fmscale.config.checkpoint import CheckpointConfig

Tell = Callable[[dict[str, Any]], None]
"""Takes an event of a job: its number as `job`, as `event` sealed, retrying, committed, failed or done, and facts."""
LAST_EVENTS = frozenset({"failed", "done"})
"""After these a job is forgotten. A job that failed has given its memory back, and must not be done again."""
NOTHING = plan_layout(())
"""Layout of a rank that has nothing to write."""


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """Settings of all saves of a run's attempt; `lease` is that under which rank 0 commits."""

    url: str
    deadline: float
    """Seconds of one store request."""
    run: str
    rank: int
    world_size: int
    lease: int
    config: CheckpointConfig


@dataclass(frozen=True, kw_only=True)
class SaveJob:
    """One rank's part of one checkpoint."""

    number: int
    """Number of the save in this process, from 0; the same on all ranks."""
    step: int
    folder: str
    complete: bool
    """True where nothing may be left to references."""
    meta: dict[str, Any] | None
    """JSON that belongs to the checkpoint; of rank 0."""
    rank_meta: dict[str, Any] | None
    """JSON that belongs to this rank."""
    memory: int = -1
    """Number of the memory that has the snapshot."""
    layout: FileLayout = NOTHING
    """Pieces in the memory."""
    refused: str = ""
    """Why this rank has nothing to write; empty where it has."""
    attempt: int = 0
    """Number of persist processes that have died on it."""
    sealed: bool = False
    """True if its files were sealed before the last process died: the memory may hold another save by now."""


def encode_job(job: SaveJob) -> bytes:
    """A job as two lines of JSON: the values of this save, and the ranges of its layout, which hardly ever change."""
    head = {one.name: getattr(job, one.name) for one in fields(job) if one.name != "layout"}
    return json.dumps(head).encode() + b"\n" + _encoded_layout(job.layout)


def decode_job(data: bytes) -> SaveJob:
    """The job that `encode_job` wrote."""
    head, _, layout = data.partition(b"\n")
    return SaveJob(layout=_decoded_layout(layout), **json.loads(head))


@lru_cache(maxsize=4)
def _encoded_layout(layout: FileLayout) -> bytes:
    ranges = [(one.tensor, one.start, one.count) for one in layout.ranges]
    return json.dumps(ranges, separators=(",", ":")).encode()


@lru_cache(maxsize=4)
def _decoded_layout(data: bytes) -> FileLayout:
    """Planned anew: what is in file order already is planned as it was."""
    return plan_layout(
        [
            FileRange(tensor=Tensor(name, state, dtype, tuple(shape)), start=start, count=count)
            for (name, state, dtype, shape), start, count in json.loads(data)
        ]
    )
