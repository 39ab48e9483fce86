"""Job of the persist process: one rank's part of one checkpoint; it crosses to the process as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from fmscale.checkpoint.format.layout import FileImage, FileLayout, plan_layout, ranges_of, tensor_table
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
    """A job as two lines of JSON: the values of this save, and the layout, which hardly ever changes."""
    head = {one.name: getattr(job, one.name) for one in fields(job) if one.name != "layout"}
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + _encoded_layout(job.layout)


def decode_job(data: bytes) -> SaveJob:
    """The job that `encode_job` wrote."""
    head, _, layout = data.partition(b"\n")
    return SaveJob(layout=_decoded_layout(layout), **json.loads(head))


@lru_cache(maxsize=4)
def _encoded_layout(layout: FileLayout) -> bytes:
    table, numbers = tensor_table(layout.ranges)
    starts, counts = [one.start for one in layout.ranges], [one.count for one in layout.ranges]
    found = {
        "order": layout.order,
        "tensors": table,
        "ranges": {"tensor": numbers, "start": starts, "count": counts},
        "offsets": layout.offsets,
        "files": [asdict(file) for file in layout.files],
        "memory_bytes": layout.memory_bytes,
    }
    return json.dumps(found, separators=(",", ":")).encode()


@lru_cache(maxsize=4)
def _decoded_layout(data: bytes) -> FileLayout:
    found = json.loads(data)
    return FileLayout(
        order=tuple(found["order"]),
        ranges=tuple(ranges_of(found["tensors"], found["ranges"])),
        offsets=tuple(found["offsets"]),
        files=tuple(FileImage(**file) for file in found["files"]),
        memory_bytes=found["memory_bytes"],
    )
