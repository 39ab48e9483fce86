"""Kept checkpoints: the last `keep_last`, steps divisible by `keep_every`, the best, the last verified, all pinned.

The owner `verified` pins verified checkpoints in the run's log. The pin is durable, every writer sees it, and it
prevents any retire. `fmscale checkpoint verify` sets it.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import time

from fmscale.checkpoint.format.names import KIND, age_of, checkpoints_folder
from fmscale.checkpoint.persist.job import SaveSettings
from fmscale.errors import Conflict
from fmscale.store.backends.posix import remove_unlocked
from fmscale.store.backends.protocol import Backend
from fmscale.store.keys import TEMPORARY_PREFIX
from fmscale.store.log.entry import LogEntry, check_inside
from fmscale.store.log.keyset import KeySet
from fmscale.store.log.log import Log
from fmscale.store.log.retirement import RetirementState, collect_garbage, pin, replay, retire, unpin

VERIFIED = "verified"
"""Owner of the pins on verified checkpoints."""


def references(entry: LogEntry) -> list[str]:
    """Folders with a checkpoint's files: its own folder, and folders of earlier checkpoints to which it refers."""
    return list(entry.body["objects"]) if entry.kind == KIND else []


def best(live: Iterable[LogEntry]) -> LogEntry | None:
    """The live checkpoint with the lowest score, the first of equals; None if no checkpoint has a score."""
    scored = [entry for entry in live if entry.kind == KIND and "score" in entry.body]
    return min(scored, key=lambda entry: (entry.body["score"], entry.number), default=None)


def expired(
    live: Iterable[LogEntry], pins: dict[int, set[str]], *, keep_last: int, keep_every: int | None
) -> list[int]:
    """Entry numbers of the live checkpoints that may be retired."""
    ours = sorted((entry for entry in live if entry.kind == KIND), key=lambda entry: entry.number)
    kept = {entry.number for entry in ours[-keep_last:]}
    if (chosen := best(ours)) is not None:
        kept.add(chosen.number)
    if keep_every:
        kept.update(entry.number for entry in ours if entry.body["step"] % keep_every == 0)
    verified = [entry.number for entry in ours if VERIFIED in pins.get(entry.number, ())]
    kept.update(verified[-1:])
    kept.update(number for number, owners in pins.items() if owners - {VERIFIED})
    return [entry.number for entry in ours if entry.number not in kept]


def mark_verified(log: Log, number: int) -> None:
    """Record that a read of every byte of a checkpoint found no damage. Raises Conflict if it is retired."""
    pin(log, [number], VERIFIED)


def verified(state: RetirementState) -> set[int]:
    """Entry numbers of the checkpoints that are marked as verified."""
    return {number for number, owners in state.pins.items() if VERIFIED in owners}


def tidy(log: Log, settings: SaveSettings, state: RetirementState, named: set[str], swept: set[str]) -> None:
    """Retire expired checkpoints and the leftovers of earlier attempts, and delete objects that were retired longer
    ago than the grace time. Updates `state`, adds retired leftovers to `named`, and adds folders without temporary
    files to `swept`.

    Leftovers are folders of an older lease without a live entry: their writers are fenced and can never commit
    them. Raises LeaseLost if a newer process has taken the lease, StoreError.
    """
    config = settings.config
    replay(log, state)
    old = expired(state.live.values(), state.pins, keep_last=config.keep_last, keep_every=config.keep_every)
    marked = [number for number in old if number in state.pins]
    left = [name for name in _left_over(log.backend, settings, state) if name not in named]
    # A Conflict: another process has pinned or retired a checkpoint meanwhile; the next save tries again.
    with suppress(Conflict):
        if marked:
            unpin(log, marked, VERIFIED, lease=settings.lease, state=state)
        if old or left:
            reason = f"keeps the last {config.keep_last}"
            retire(log, old, references, objects=left, reason=reason, lease=settings.lease, state=state)
            named.update(left)
    now = time()
    if due := [entry for entry in state.retires if now - entry.time >= config.grace_seconds]:
        # Each folder once: a look at every folder ever retired would take longer with every save.
        for entry in due:
            check_inside(entry, entry.body["objects"], "checkpoints/")
        folders = {name for entry in due for name in entry.body["objects"]} - swept
        _sweep(log.backend, folders)
        swept |= folders
        collect_garbage(log, references, grace=config.grace_seconds, state=state)


def _left_over(backend: Backend, settings: SaveSettings, state: RetirementState) -> list[str]:
    top = checkpoints_folder(settings.run)
    needed = KeySet(name for entry in state.live.values() for name in references(entry))
    folders = []
    for name in backend.list_names(top):
        age = age_of(name)
        folder = f"{top}/{name}/"
        if age and age[0] < settings.lease and not needed.touches(folder):
            folders.append(folder)
    return folders


def _sweep(backend: Backend, folders: Iterable[str]) -> None:
    """Remove temporary files of killed writers from retired folders, on file systems without O_TMPFILE."""
    for folder in folders:
        path = backend.local_path(folder.rstrip("/")) if folder.endswith("/") else None
        if path is not None and Path(path).is_dir():
            for name in os.listdir(path):
                if name.startswith(TEMPORARY_PREFIX):
                    with suppress(FileNotFoundError, BlockingIOError):
                        remove_unlocked(f"{path}/{name}")
