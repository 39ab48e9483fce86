"""A checkpoint of weights that another program made, a part at a time: each is stored as that of a rank."""

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Event
from typing import Any

import torch
import xxhash

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest
from fmscale.checkpoint.format.layout import FileRange, Tensor, plan_layout
from fmscale.checkpoint.format.names import checkpoint_folder, run_log
from fmscale.checkpoint.format.piece import elements
from fmscale.checkpoint.persist.commit import RunState, commit_seals
from fmscale.checkpoint.persist.file_writer import THREADS
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.persist.rank_part import discard, store_seal, write_files
from fmscale.checkpoint.persist.retention import tidy
from fmscale.checkpoint.persist.step import Save
from fmscale.checkpoint.snapshot.copy_progress import CopyProgress
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.lease import acquire
from fmscale.store.log.log import LEASE

PART_BYTES = 256 << 20
"""Most bytes of a part of several tensors: the memory of an import, unless a single tensor is larger."""
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

    Memory: `part_bytes`, or else the largest tensor twice. Raises ConfigError for a run that exists, StoreError, and
    the errors of `read`.
    """
    log = run_log(backend, run)
    if any(entry.kind != LEASE or entry.body.get("owner") != OWNER for entry in log.entries()):
        raise ConfigError(
            "The store has a run of this name", found=f"{backend.url}#{run}", remedy="Take another name for the run."
        )
    ranges = [FileRange(tensor=info, start=0, count=elements(info.shape)) for info in tensors]
    grouped = plan_layout(ranges, part_bytes)
    layouts = [plan_layout(grouped.ranges[file.first : file.stop], part_bytes) for file in grouped.files]
    lease = acquire(log, OWNER).number
    config = CheckpointConfig(grace_seconds=0.0)  # folders of older leases: no reader has ever seen them
    settings = SaveSettings(url="", deadline=0.0, run=run, rank=0, world_size=len(layouts), lease=lease, config=config)
    folder = checkpoint_folder(run, 0, lease)
    job = SaveJob(number=0, step=0, folder=folder, complete=True, meta=meta, rank_meta=None, layout=layouts[0])
    memory, saves = memoryview(mmap.mmap(-1, max(layout.memory_bytes for layout in layouts))), list[Save]()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for rank, layout in enumerate(layouts):
                save = Save(
                    backend=backend,
                    settings=replace(settings, rank=rank),
                    job=replace(job, layout=layout, meta=None if rank else meta),
                    memory=memory,
                    copied=CopyProgress(),
                    known={},
                    pool=pool,
                    closing=Event(),
                )
                saves.append(save)
                for extent, at in zip(layout.ranges, layout.offsets, strict=True):
                    place = torch.frombuffer(memory, dtype=torch.uint8, count=extent.nbytes, offset=at)
                    place.copy_(_bytes(extent.tensor, read))
                    progress(extent.nbytes)
                write_files(save)
                store_seal(save)
    except BaseException:
        with suppress(StoreError):
            for save in saves:
                discard(backend, save.settings, save.job)
        raise
    seals = [save.seal for save in saves if save.seal is not None]
    entry = commit_seals(log, settings, job, seals, state := RunState())
    with suppress(StoreError):
        tidy(log, settings, state, set(), set())
    return next(found for found in list_checkpoints(backend, run) if found.entry == entry.number)


def same_weights(backend: Backend, found: CheckpointEntry, tensors: Sequence[Tensor], read: Read) -> bool:
    """True if a checkpoint of `save_weights` has the same tensors, to the bit. Reads no file of the checkpoint."""
    manifest = load_manifest(backend, found)
    if sorted(manifest.tensors) != sorted(tensors) or len(manifest.digests) != len(tensors):
        return False
    there = {manifest.tensors[n].name: d for n, d in zip(manifest.columns["tensor"], manifest.digests, strict=True)}
    return all(there[info.name] == xxhash.xxh3_128(_bytes(info, read).numpy().data).hexdigest() for info in tensors)


def _bytes(info: Tensor, read: Read) -> torch.Tensor:
    tensor = read(info.name)
    assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{info.dtype}", info.shape), info
    return tensor.contiguous().view(-1).view(torch.uint8)
