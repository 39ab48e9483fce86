"""Puts one rank's part of a checkpoint on the store: digests, files, checksums, and the seal last."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from fmscale.checkpoint.job import Job, Settings
from fmscale.checkpoint.layout import FileImage, Range, header
from fmscale.checkpoint.names import SUMS, data_key, refused_key, seal_key
from fmscale.checkpoint.seal import Placed, Seal, StoredFile, decode_seal, encode_seal
from fmscale.checkpoint.write import Image, store_image
from fmscale.errors import Conflict, ObjectNotFound
from fmscale.store.backend import Backend
from fmscale.store.digest import canonical_json, metadata_digest

SMALLEST_REFERENCE = 64 << 10
"""Smaller pieces are written again: referring to one saves less than the request that reads it costs."""

Known = Mapping[Range, tuple[StoredFile, Placed]]
"""The pieces of the last committed checkpoint, by what they are a range of."""


def persist(backend: Backend, settings: Settings, job: Job, memory: memoryview, known: Known) -> Seal:
    """Write the rank's files, then its seal; durable when this returns. Pieces that `known` has with the same
    digest are referred to. Raises StoreError.
    """
    with ThreadPoolExecutor(1) as pool:
        wanted = settings.digests and settings.incremental
        hashing = pool.submit(_digests, job, memory) if wanted else None
        reused: dict[int, tuple[StoredFile, Placed]] = {}
        if known and hashing is not None and not job.complete:
            found = hashing.result()
            reused = {
                i: known[one]
                for i, one in enumerate(job.ranges)
                if one.nbytes >= SMALLEST_REFERENCE and one in known and known[one][1].digest == found[i]
            }
        files: list[StoredFile] = []
        offsets: dict[int, tuple[int, int]] = {}
        for image in job.files:
            fresh = [i for i in range(image.first, image.stop) if i not in reused]
            if fresh:
                at = image.header_bytes
                for i in fresh:
                    offsets[i] = (len(files), at)
                    at += job.ranges[i].nbytes
                files.append(_store(backend, settings, job, memory, image, fresh, len(files)))
        digests = hashing.result() if hashing is not None else [""] * len(job.ranges)
    pieces = []
    for i, one in enumerate(job.ranges):
        if i in reused:
            file, placed = reused[i]
            if file not in files:
                files.append(file)
            offsets[i] = (files.index(file), placed.offset)
        pieces.append(Placed(range=one, file=offsets[i][0], offset=offsets[i][1], digest=digests[i]))
    seal = Seal(
        step=job.step,
        folder=job.folder,
        rank=settings.rank,
        world_size=settings.world_size,
        files=tuple(files),
        pieces=tuple(pieces),
        bytes=sum(one.nbytes for i, one in enumerate(job.ranges) if i not in reused),
        referenced=sum(job.ranges[i].nbytes for i in reused),
        meta=job.meta,
        rank_meta=job.rank_meta,
    )
    return _seal(backend, settings, seal)


def stored_seal(backend: Backend, job: Job, rank: int) -> Seal | None:
    """The seal that an earlier attempt at this job left, or None."""
    key = seal_key(job.folder, rank)
    try:
        return decode_seal(backend.get(key), key)
    except ObjectNotFound:
        return None


def refuse(backend: Backend, settings: Settings, job: Job, reason: str) -> None:
    """Tell rank 0 not to wait for this rank's seal. Raises StoreError."""
    key = refused_key(job.folder, settings.rank)
    backend.put_if_absent(key, canonical_json({"format_version": 1, "reason": reason}))


def discard(backend: Backend, settings: Settings, job: Job) -> None:
    """Delete what a save that was given up has stored of this rank; its seal first. Raises StoreError."""
    backend.delete(seal_key(job.folder, settings.rank))
    for number in range(len(job.files)):
        key = data_key(job.folder, settings.rank, number)
        backend.delete(key)
        backend.delete(key + SUMS)


def _store(
    backend: Backend,
    settings: Settings,
    job: Job,
    memory: memoryview,
    image: FileImage,
    fresh: Sequence[int],
    number: int,
) -> StoredFile:
    """Write one file with the pieces `fresh`, and its checksums."""
    top = header([job.ranges[i] for i in fresh], image.header_bytes)
    memory[image.begin : image.begin + len(top)] = top
    spans = [(image.begin, image.header_bytes)]
    spans += [(job.offsets[i], job.ranges[i].nbytes) for i in fresh]
    whole = Image(memory, spans)
    key = data_key(job.folder, settings.rank, number)
    sums = store_image(backend, key, whole, digests=settings.digests)
    if sums is None:
        return StoredFile(key=key, bytes=whole.nbytes, sums="")
    data = sums.astype("<u4").tobytes()
    backend.put(key + SUMS, data)
    return StoredFile(key=key, bytes=whole.nbytes, sums=metadata_digest(data))


def _digests(job: Job, memory: memoryview) -> list[str]:
    return [
        xxhash.xxh3_128_hexdigest(memory[at : at + one.nbytes])
        for one, at in zip(job.ranges, job.offsets, strict=True)
    ]


def _seal(backend: Backend, settings: Settings, seal: Seal) -> Seal:
    """Store the seal, unless an earlier attempt whose answer was lost did: then that one counts."""
    key, data = seal_key(seal.folder, settings.rank), encode_seal(seal)
    if backend.put_if_absent(key, data) or backend.get(key) == data:
        return seal
    raise Conflict(
        "this rank has sealed the checkpoint with other content before",
        found=key,
        remedy="Two processes claim to be the same rank of one run; end one of them.",
    )
