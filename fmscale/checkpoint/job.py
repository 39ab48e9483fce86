"""What the trainer asks of the persist process: one rank's part of one checkpoint, as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from fmscale.checkpoint.layout import FileImage, Range


@dataclass(frozen=True, kw_only=True)
class Settings:
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
    epoch: int
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
class Job:
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
    ranges: tuple[Range, ...] = ()
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


def encode_job(job: Job) -> bytes:
    """A job as JSON; tensors that have several pieces are written once."""
    tensors: dict[tuple[Any, ...], int] = {}
    for one in job.ranges:
        tensors.setdefault((one.name, one.state, one.dtype, one.shape), len(tensors))
    fields = {
        name: getattr(job, name)
        for name in (
            "number",
            "step",
            "folder",
            "complete",
            "memory",
            "meta",
            "rank_meta",
            "refused",
            "attempt",
            "sealed",
        )
    }
    fields["tensors"] = list(tensors)
    fields["pieces"] = [
        (tensors[one.name, one.state, one.dtype, one.shape], one.start, one.count, at)
        for one, at in zip(job.ranges, job.offsets, strict=True)
    ]
    fields["files"] = [asdict(file) for file in job.files]
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_job(data: bytes) -> Job:
    """The job that `encode_job` wrote."""
    fields = json.loads(data)
    tensors = [(name, state, dtype, tuple(shape)) for name, state, dtype, shape in fields.pop("tensors")]
    pieces = fields.pop("pieces")
    files = fields.pop("files")
    ranges = []
    for tensor, start, count, _ in pieces:
        name, state, dtype, shape = tensors[tensor]
        ranges.append(Range(name=name, state=state, dtype=dtype, shape=shape, start=start, count=count))
    return Job(
        ranges=tuple(ranges),
        offsets=tuple(piece[3] for piece in pieces),
        files=tuple(FileImage(**file) for file in files),
        **fields,
    )
