"""Job of the persist process: one rank's part of one checkpoint; it crosses to the process as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from fmscale.checkpoint.format.layout import FileImage, FileRange
from fmscale.config.checkpoint import CheckpointConfig

Tell = Callable[[dict[str, Any]], None]
"""Takes an event of a job: its number as `job`, as `event` sealed, retrying, committed, failed or done, and facts."""
LAST_EVENTS = frozenset({"failed", "done"})
"""After these a job is forgotten. A job that failed has given its memory back, and must not be done again."""


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
    ranges: tuple[FileRange, ...] = ()
    """Pieces in file order."""
    offsets: tuple[int, ...] = ()
    """Place of each in the memory."""
    files: tuple[FileImage, ...] = ()
    refused: str = ""
    """Why this rank has nothing to write; empty where it has."""
    attempt: int = 0
    """Number of persist processes that have died on it."""
    sealed: bool = False
    """True if its files were sealed before the last process died: the memory may hold another save by now."""


Layouts = tuple[tuple[FileRange, ...], tuple[int, ...], tuple[FileImage, ...]]
_LAYOUT = ("ranges", "offsets", "files")


def encode_job(job: SaveJob) -> bytes:
    """A job as two lines of JSON: the values of this save, and the layout, which hardly ever changes."""
    head = {one.name: getattr(job, one.name) for one in fields(job) if one.name not in _LAYOUT}
    return (
        json.dumps(head, separators=(",", ":")).encode()
        + b"\n"
        + _encoded_layout(_ById((job.ranges, job.offsets, job.files)))
    )


def decode_job(data: bytes) -> SaveJob:
    """The job that `encode_job` wrote."""
    head, _, layout = data.partition(b"\n")
    ranges, offsets, files = _decoded_layout(layout)
    return SaveJob(ranges=ranges, offsets=offsets, files=files, **json.loads(head))


class _ById:
    """A layout as a key: the same tuples, not equal ones, as to compare thousands of ranges takes as long as to
    encode them.
    """

    def __init__(self, layout: Layouts) -> None:
        self.layout = layout

    def __hash__(self) -> int:
        return id(self.layout[0])

    def __eq__(self, other: object) -> bool:
        pairs = zip(self.layout, other.layout, strict=True) if isinstance(other, _ById) else [(0, 1)]
        return all(mine is theirs for mine, theirs in pairs)


@lru_cache(maxsize=4)
def _encoded_layout(key: _ById) -> bytes:
    """Tensors that have several pieces are written once."""
    ranges, offsets, files = key.layout
    tensors: dict[tuple[Any, ...], int] = {}
    for one in ranges:
        tensors.setdefault((one.name, one.state, one.dtype, one.shape), len(tensors))
    found = {
        "tensors": list(tensors),
        "pieces": [
            (tensors[one.name, one.state, one.dtype, one.shape], one.start, one.count, at)
            for one, at in zip(ranges, offsets, strict=True)
        ],
        "files": [asdict(file) for file in files],
    }
    return json.dumps(found, separators=(",", ":")).encode()


@lru_cache(maxsize=4)
def _decoded_layout(data: bytes) -> Layouts:
    found = json.loads(data)
    tensors = [(name, state, dtype, tuple(shape)) for name, state, dtype, shape in found["tensors"]]
    ranges = []
    for tensor, start, count, _ in found["pieces"]:
        name, state, dtype, shape = tensors[tensor]
        ranges.append(FileRange(name=name, state=state, dtype=dtype, shape=shape, start=start, count=count))
    offsets = tuple(piece[3] for piece in found["pieces"])
    return tuple(ranges), offsets, tuple(FileImage(**file) for file in found["files"])
