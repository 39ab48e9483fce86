"""Steps that store one rank's part of a checkpoint: digests, files and checksums, then the seal."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import xxhash

from fmscale.checkpoint.format.layout import FileImage, FileRange, header
from fmscale.checkpoint.format.names import SUMS, alive_key, data_key, refused_key, seal_key
from fmscale.checkpoint.format.seal import Seal, StoredFile, StoredPiece, decode_seal, encode_seal
from fmscale.checkpoint.persist.file_writer import publish_unsynced, store_stream
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.persist.step import Known, Save
from fmscale.checkpoint.persist.stream import Block, Stream
from fmscale.errors import Conflict
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import canonical_json, metadata_digest

SMALLEST_REFERENCE = 64 << 10
"""Bytes below which a piece is written again: a reference saves less than the request that reads it costs."""
STEP_BYTES = 4 << 20
"""Bytes that are digested and passed to the writer at once."""


@dataclass(kw_only=True)
class _Part:
    """A rank's part so far, piece by piece."""

    digests: list[str] = field(default_factory=list)
    """Digest of each piece so far; empty without digests."""
    reused: dict[int, tuple[StoredFile, StoredPiece]] = field(default_factory=dict)
    """Pieces of earlier checkpoints that the save refers to, by index in the layout."""


def write_files(save: Save) -> None:
    """Write the rank's files and make `save.seal`; the files are durable when this returns. The seal refers
    to pieces that `known` has with the same digest.

    Raises StoreError, and SaveFailed for a failed copy.
    """
    settings, job, part = save.settings, save.job, _Part()
    candidates = {} if job.complete else save.known
    files: list[StoredFile] = []
    offsets: dict[int, tuple[int, int]] = {}
    for image in job.layout.files:
        key = data_key(job.folder, settings.rank, len(files))
        stream = Stream(save.memory, image.begin, image.header_bytes, image.header_bytes + image.data_bytes)
        fill = partial(_fill, save, image, candidates, part)
        digests, exact = settings.config.digests, not candidates
        sums = store_stream(save.backend, key, stream, fill, save.pool, digests=digests, exact=exact)
        if sums is None:
            continue
        at = image.header_bytes
        for i in range(image.first, image.stop):
            if i not in part.reused:
                offsets[i] = (len(files), at)
                at += job.layout.ranges[i].nbytes
        digest = metadata_digest(sums.astype("<u4").tobytes()) if settings.config.digests else ""
        files.append(StoredFile(key=key, bytes=stream.nbytes, sums=digest))
    pieces = []
    for i, extent in enumerate(job.layout.ranges):
        if i in part.reused:
            file, placed = part.reused[i]
            if file not in files:
                files.append(file)
            offsets[i] = (files.index(file), placed.offset)
        pieces.append(StoredPiece(range=extent, file=offsets[i][0], offset=offsets[i][1], digest=part.digests[i]))
    save.seal = Seal(
        step=job.step,
        folder=job.folder,
        rank=settings.rank,
        world_size=settings.world_size,
        files=tuple(files),
        pieces=tuple(pieces),
        bytes=sum(extent.nbytes for i, extent in enumerate(job.layout.ranges) if i not in part.reused),
        referenced=sum(job.layout.ranges[i].nbytes for i in part.reused),
        meta=job.meta,
        rank_meta=job.rank_meta,
    )


def store_seal(save: Save) -> None:
    """Store the seal, or accept an equal seal of an earlier attempt whose answer was lost. From then on rank 0 may
    commit the rank's part.

    On a file system the seal need not survive a crash: after a crash no process reads it without a log entry.
    """
    assert save.seal is not None, "the files come before the seal"
    key, data = seal_key(save.seal.folder, save.settings.rank), encode_seal(save.seal)
    path = save.backend.local_path(key)
    if publish_unsynced(str(path), key, data) if path is not None else store_once(save.backend, key, data):
        return
    raise Conflict(
        "this rank has sealed the checkpoint with other content before",
        found=key,
        remedy="Two processes claim to be the same rank of one run; end one of them.",
    )


def stored_seal(backend: Backend, job: SaveJob, rank: int) -> Seal | None:
    """The seal that an earlier attempt at this job left, or None."""
    key = seal_key(job.folder, rank)
    data = find(backend, key)
    return None if data is None else decode_seal(data, key)


def refuse(backend: Backend, settings: SaveSettings, job: SaveJob, reason: str) -> None:
    """Tell the other ranks not to wait for this rank's seal, or for rank 0's commit. Raises StoreError."""
    key = refused_key(job.folder, settings.rank)
    store_once(backend, key, canonical_json({"format_version": 1, "reason": reason}))


def refusal(backend: Backend, job: SaveJob, rank: int) -> str | None:
    """Reason why a rank gave the save up; None for a rank that has not refused it. Raises StoreError."""
    data = find(backend, refused_key(job.folder, rank))
    return None if data is None else str(json.loads(data)["reason"])


def discard(backend: Backend, settings: SaveSettings, job: SaveJob) -> None:
    """Delete this rank's objects of a save that was given up, its seal first. Raises StoreError."""
    backend.delete(seal_key(job.folder, settings.rank))
    backend.delete(alive_key(job.folder, settings.rank))
    for number in range(len(job.layout.files)):
        key = data_key(job.folder, settings.rank, number)
        backend.delete(key)
        backend.delete(key + SUMS)


def _fill(save: Save, image: FileImage, candidates: Known, part: _Part, stream: Stream) -> Iterator[Block]:
    """Add the pieces of one file to its stream as they are copied, except pieces that `candidates` has with the same
    digest. Yields complete blocks.
    """
    job, config = save.job, save.settings.config
    hashed = config.digests and config.incremental
    fresh: list[FileRange] = []
    final = 0
    for i in range(image.first, image.stop):
        extent, at = job.layout.ranges[i], job.layout.offsets[i]
        candidate = candidates.get(extent) if hashed and extent.nbytes >= SMALLEST_REFERENCE else None
        digest = xxhash.xxh3_128()
        for start in range(at, at + extent.nbytes, STEP_BYTES):
            end = min(start + STEP_BYTES, at + extent.nbytes)
            if end > final:
                final = save.copied.wait(end)
            if hashed:
                digest.update(save.memory[start:end])
            if candidate is None:
                yield from stream.add(start, end - start)
        part.digests.append(digest.hexdigest() if hashed else "")
        if candidate is not None and candidate[1].digest == part.digests[i]:
            part.reused[i] = candidate
            continue
        if candidate is not None:
            yield from stream.add(at, extent.nbytes)
        fresh.append(extent)
    yield from stream.close(header(fresh, image.header_bytes))
