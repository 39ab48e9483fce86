"""A checkpoint of weights that another program made, written file by file: memory holds a single file at a time."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest
from fmscale.checkpoint.format.layout import FileImage, FileLayout, FileRange, Tensor, header, pages, plan_layout
from fmscale.checkpoint.format.names import SUMS, checkpoint_folder, data_key, run_log, seal_key
from fmscale.checkpoint.format.piece import elements
from fmscale.checkpoint.format.seal import Seal, StoredFile, StoredPiece, encode_seal
from fmscale.checkpoint.persist.commit import RunState, commit_seals
from fmscale.checkpoint.persist.file_writer import THREADS, store_stream
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.persist.retention import tidy
from fmscale.checkpoint.persist.stream import Block, Stream
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import metadata_digest
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import LEASE

PART_BYTES = 256 << 20
"""Most bytes of a file of several tensors: the memory of an import, unless a single tensor is larger."""
OWNER = "weights of another program"
"""Owner of the lease: a log of nothing but such leases is that of killed calls, and may be written again."""

Read = Callable[[str], torch.Tensor]


def save_weights(
    backend: Backend,
    run: str,
    tensors: Sequence[Tensor],
    read: Read,
    meta: dict[str, Any],
    *,
    part_bytes: int = PART_BYTES,
    progress: Callable[[int], None] = lambda _: None,
) -> CheckpointEntry:
    """Make the run `run` of one checkpoint at step 0 from whole tensors that `read` gives by name, of the types and
    shapes in `tensors`; it is visible, and durable, when this returns. What a killed call has left is deleted.

    Memory: the largest tensor twice, or else `part_bytes`. Raises ConfigError for a run that exists, StoreError, and
    the errors of `read`.
    """
    log = run_log(backend, run)
    if any(entry.kind != LEASE or entry.body.get("owner") != OWNER for entry in log.entries()):
        raise ConfigError(
            "The store has a run of this name", found=f"{backend.url}#{run}", remedy="Take another name for the run."
        )
    lease = acquire(log, OWNER).number
    config = CheckpointConfig(grace_seconds=0.0)  # folders of older leases: no reader has ever seen them
    settings = SaveSettings(url="", deadline=0.0, run=run, rank=0, world_size=1, lease=lease, config=config)
    layout = plan_layout([_whole(tensor) for tensor in tensors], part_bytes)
    folder = checkpoint_folder(run, 0, lease)
    job = SaveJob(number=0, step=0, folder=folder, complete=True, meta=meta, rank_meta=None, layout=layout)
    try:
        seal = _write(backend, job, read, progress)
    except BaseException:
        with suppress(StoreError):
            _discard(backend, job)
        raise
    store_once(backend, seal_key(folder, 0), encode_seal(seal))
    entry = commit_seals(log, settings, job, [seal], state := RunState())
    with suppress(StoreError):
        tidy(log, settings, state, set(), set())
    return next(found for found in list_checkpoints(backend, run) if found.entry == entry.number)


def same_weights(backend: Backend, found: CheckpointEntry, tensors: Sequence[Tensor], read: Read) -> bool:
    """True if a checkpoint of `save_weights` has the same tensors, to the bit. Reads no file of the checkpoint."""
    manifest = load_manifest(backend, found)
    if sorted(manifest.tensors) != sorted(tensors) or len(manifest.digests) != len(tensors):
        return False
    there = {manifest.tensors[n].name: d for n, d in zip(manifest.columns["tensor"], manifest.digests, strict=True)}
    return all(
        there[tensor.name] == xxhash.xxh3_128(_bytes(tensor, read).numpy().data).hexdigest() for tensor in tensors
    )


def _discard(backend: Backend, job: SaveJob) -> None:
    """Delete the files of a save that no log entry names. Raises StoreError."""
    for number in range(len(job.layout.files)):
        backend.delete(data_key(job.folder, 0, number))
        backend.delete(data_key(job.folder, 0, number) + SUMS)


def _write(backend: Backend, job: SaveJob, read: Read, progress: Callable[[int], None]) -> Seal:
    layout, files, pieces = job.layout, list[StoredFile](), list[StoredPiece]()
    memory = memoryview(mmap.mmap(-1, max(pages(image.header_bytes + image.data_bytes) for image in layout.files)))
    with ThreadPoolExecutor(THREADS) as pool:
        for number, image in enumerate(layout.files):
            part = _File(layout, image, memory, read, progress)
            key = data_key(job.folder, 0, number)
            stream = Stream(memory, 0, image.header_bytes, image.header_bytes + image.data_bytes)
            sums = store_stream(backend, key, stream, part.fill, pool, digests=True, exact=True)
            assert sums is not None, "a file has a tensor"
            digest = metadata_digest(sums.astype("<u4").tobytes())
            files.append(StoredFile(key=key, bytes=stream.nbytes, sums=digest))
            for i, piece in enumerate(range(image.first, image.stop)):
                at = layout.offsets[piece] - image.begin
                pieces.append(StoredPiece(range=layout.ranges[piece], file=number, offset=at, digest=part.digests[i]))
    return Seal(
        step=0,
        folder=job.folder,
        rank=0,
        world_size=1,
        files=tuple(files),
        pieces=tuple(pieces),
        bytes=sum(extent.nbytes for extent in layout.ranges),
        referenced=0,
        meta=job.meta,
    )


@dataclass
class _File:
    """A file whose tensors are read while it is written."""

    layout: FileLayout
    image: FileImage
    memory: memoryview
    read: Read
    progress: Callable[[int], None]
    digests: list[str] = field(default_factory=list)

    def fill(self, stream: Stream) -> Iterator[Block]:
        """Add the tensors one after another, then the header; yields complete blocks."""
        ranges = self.layout.ranges[self.image.first : self.image.stop]
        for extent, begin in zip(ranges, self.layout.offsets[self.image.first : self.image.stop], strict=True):
            at = begin - self.image.begin
            place = torch.frombuffer(self.memory, dtype=torch.uint8, count=extent.nbytes, offset=at)
            place.copy_(_bytes(extent.tensor, self.read))
            self.digests.append(xxhash.xxh3_128(self.memory[at : at + extent.nbytes]).hexdigest())
            yield from stream.add(at, extent.nbytes)
            self.progress(extent.nbytes)
        yield from stream.close(header(ranges, self.image.header_bytes))


def _bytes(info: Tensor, read: Read) -> torch.Tensor:
    tensor = read(info.name)
    assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{info.dtype}", info.shape), info
    return tensor.contiguous().view(-1).view(torch.uint8)


def _whole(tensor: Tensor) -> FileRange:
    return FileRange(tensor=tensor, start=0, count=elements(tensor.shape))
