"""What the trainer asks of the persist process: one rank's part of one checkpoint, as JSON."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from fmscale.checkpoint.format.layout import FileImage, FileRange


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """What stays the same for all saves of a run's attempt."""

    url: str
    """The store."""
    deadline: float
    """Seconds of one store request."""
    run: str
    """Name of the run."""
    rank: int
    """This rank."""
    world_size: int
    """Ranks that save together."""
    lease: int
    """Of the lease under which rank 0 commits."""
    keep_last: int
    """See CheckpointConfig, as for the others."""
    keep_every: int | None
    grace_seconds: float
    incremental: bool
    digests: bool
    retries: int
    seal_seconds: float


@dataclass(frozen=True, kw_only=True)
class SaveJob:
    """One rank's part of one checkpoint."""

    number: int
    """Number of the save in this process, from 0; the same on all ranks."""
    step: int
    """Optimizer step."""
    folder: str
    """Where it goes."""
    complete: bool
    """Whether nothing may be left to references."""
    meta: dict[str, Any] | None
    """What belongs to the checkpoint; of rank 0."""
    rank_meta: dict[str, Any] | None
    """What belongs to this rank."""
    memory: int = -1
    """Which memory has the snapshot."""
    ranges: tuple[FileRange, ...] = ()
    """Pieces in file order."""
    offsets: tuple[int, ...] = ()
    """Where each lies in the memory."""
    files: tuple[FileImage, ...] = ()
    """Files."""
    refused: str = ""
    """Why this rank has nothing to write; empty where it has."""
    attempt: int = 0
    """How many persist processes have died on it."""
    sealed: bool = False
    """Whether its files were sealed before the last one died: the memory may hold another save by now."""


_FIELDS = ("number", "step", "folder", "complete", "memory", "meta", "rank_meta", "refused", "attempt", "sealed")

Layouts = tuple[tuple[FileRange, ...], tuple[int, ...], tuple[FileImage, ...]]


def encode_job(job: SaveJob) -> bytes:
    """A job as two lines of JSON: what changes from save to save, and the layout, which hardly ever does."""
    head = json.dumps({name: getattr(job, name) for name in _FIELDS}, separators=(",", ":")).encode()
    return head + b"\n" + _encoded_layout(_ById((job.ranges, job.offsets, job.files)))


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
    fields = {
        "tensors": list(tensors),
        "pieces": [
            (tensors[one.name, one.state, one.dtype, one.shape], one.start, one.count, at)
            for one, at in zip(ranges, offsets, strict=True)
        ],
        "files": [asdict(file) for file in files],
    }
    return json.dumps(fields, separators=(",", ":")).encode()


@lru_cache(maxsize=4)
def _decoded_layout(data: bytes) -> Layouts:
    fields = json.loads(data)
    tensors = [(name, state, dtype, tuple(shape)) for name, state, dtype, shape in fields["tensors"]]
    ranges = []
    for tensor, start, count, _ in fields["pieces"]:
        name, state, dtype, shape = tensors[tensor]
        ranges.append(FileRange(name=name, state=state, dtype=dtype, shape=shape, start=start, count=count))
    offsets = tuple(piece[3] for piece in fields["pieces"])
    return tuple(ranges), offsets, tuple(FileImage(**file) for file in fields["files"])
