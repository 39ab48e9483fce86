"""Job of the persist process: one rank's part of one checkpoint; it crosses to the process as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from fmscale.checkpoint.format.layout import FileLayout, FileRange, Tensor, plan_layout
from fmscale.config.checkpoint import CheckpointConfig

Tell = Callable[[dict[str, Any]], None]
"""Takes an event: `job` is its number, `event` is sealed, retrying, committed, failed or done; facts follow."""
LAST_EVENTS = frozenset({"failed", "done"})
"""Events that end a job. A failed job has released its memory, and must not run again."""
NOTHING = plan_layout(())
"""Layout of a rank that has nothing to write."""


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """Settings that all saves of a rank under one lease share. Rank 0 commits under `lease`."""

    url: str
    deadline: float
    """Most seconds of one store request."""
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
    """True if the save may not refer to an earlier checkpoint."""
    meta: dict[str, Any] | None
    """JSON of the checkpoint, in the job of rank 0; None in all other jobs."""
    rank_meta: dict[str, Any] | None
    """JSON of this rank."""
    memory: int = -1
    """Number of the SharedMemory that holds the snapshot."""
    layout: FileLayout = NOTHING
    """Places of the pieces in the memory."""
    refused: str = ""
    """Reason why this rank has nothing to write; empty for a rank that writes."""
    attempt: int = 0
    """Number of persist processes that have died during this job."""
    sealed: bool = False
    """True if the rank had sealed before its process died: the memory may hold another save by now."""


def encode_job(job: SaveJob) -> bytes:
    """Encode a job as two lines of JSON: the values of this save, and the ranges of its layout, which rarely change."""
    head = {field.name: getattr(job, field.name) for field in fields(job) if field.name != "layout"}
    return json.dumps(head).encode() + b"\n" + _encoded_layout(job.layout)


def decode_job(data: bytes) -> SaveJob:
    """Decode a job that `encode_job` has encoded."""
    head, _, layout = data.partition(b"\n")
    return SaveJob(layout=_decoded_layout(layout), **json.loads(head))


@lru_cache(maxsize=4)
def _encoded_layout(layout: FileLayout) -> bytes:
    ranges = [(piece.tensor, piece.start, piece.count) for piece in layout.ranges]
    return json.dumps(ranges, separators=(",", ":")).encode()


@lru_cache(maxsize=4)
def _decoded_layout(data: bytes) -> FileLayout:
    """Plan the layout again: ranges in file order give the same layout."""
    return plan_layout(
        [
            FileRange(tensor=Tensor(name, state, dtype, tuple(shape)), start=start, count=count)
            for (name, state, dtype, shape), start, count in json.loads(data)
        ]
    )
