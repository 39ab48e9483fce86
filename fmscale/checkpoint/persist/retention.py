"""Checkpoints that stay: the last k, every n-th for good, the last verified one, and those that somebody pinned.

`verified` is a pin in the run's log by the owner of that name: durable, seen by every writer, and in the way of
any retire. `fmscale checkpoint verify` puts it there.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import time

from fmscale.checkpoint.format.names import KIND, checkpoints_folder, lease_of
from fmscale.checkpoint.persist.job import SaveSettings
from fmscale.errors import Conflict
from fmscale.store.backends.posix import remove_unlocked
from fmscale.store.backends.protocol import Backend
from fmscale.store.keys import TEMPORARY_PREFIX
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.keyset import KeySet
from fmscale.store.log.log import Log
from fmscale.store.log.retirement import RetirementState, collect_garbage, pin, replay, retire, unpin

VERIFIED = "verified"
"""Owner of the pins on verified checkpoints."""


def references(entry: LogEntry) -> list[str]:
    """Folders that a checkpoint's files are in: its own, and those of earlier ones it refers to."""
    return list(entry.body["objects"]) if entry.kind == KIND else []


def expired(
    live: Iterable[LogEntry], pins: dict[int, set[str]], *, keep_last: int, keep_every: int | None
) -> list[int]:
    """Numbers of the live checkpoints that may go."""
    ours = sorted((entry for entry in live if entry.kind == KIND), key=lambda entry: entry.number)
    kept = {entry.number for entry in ours[-keep_last:]}
    if keep_every:
        kept.update(entry.number for entry in ours if entry.body["step"] % keep_every == 0)
    verified = [entry.number for entry in ours if VERIFIED in pins.get(entry.number, ())]
    kept.update(verified[-1:])
    kept.update(number for number, owners in pins.items() if owners - {VERIFIED})
    return [entry.number for entry in ours if entry.number not in kept]


def mark_verified(log: Log, number: int) -> None:
    """Record that every byte of a checkpoint was read and found right. Raises Conflict if it is retired."""
    pin(log, [number], VERIFIED)


def verified(state: RetirementState) -> set[int]:
    """Checkpoints that are marked."""
    return {number for number, owners in state.pins.items() if VERIFIED in owners}


def tidy(log: Log, settings: SaveSettings, state: RetirementState, named: set[str], swept: set[str]) -> None:
    """Take expired checkpoints and the left-overs of earlier attempts out of use, and delete what was taken out
    of use longer ago than the grace time. `state` is brought up to date; `named` are left-overs dealt with,
    `swept` folders whose unnamed files are gone.

    Left-overs are folders of an older lease than ours without a live entry: their writers are fenced and can
    never commit them. Raises LeaseLost for a zombie, StoreError.
    """
    config = settings.config
    replay(log, state)
    old = expired(state.live.values(), state.pins, keep_last=config.keep_last, keep_every=config.keep_every)
    marked = [number for number in old if number in state.pins]
    left = [name for name in _left_over(log.backend, settings, state) if name not in named]
    # A Conflict: somebody pinned or retired one meanwhile; the next save looks again.
    with suppress(Conflict):
        if marked:
            unpin(log, marked, VERIFIED, lease=settings.lease, state=state)
        if old or left:
            reason = f"keeps the last {config.keep_last}"
            retire(log, old, references, objects=left, reason=reason, lease=settings.lease, state=state)
            named.update(left)
    now = time()
    if due := [entry for entry in state.retires if now - entry.time >= config.grace_seconds]:
        # Once: a look at every folder that was ever retired would take longer with every save.
        folders = {name for entry in due for name in entry.body["objects"]} - swept
        _sweep(log.backend, folders)
        swept |= folders
        collect_garbage(log, references, grace=config.grace_seconds, state=state)


def _left_over(backend: Backend, settings: SaveSettings, state: RetirementState) -> list[str]:
    top = checkpoints_folder(settings.run)
    needed = KeySet(name for entry in state.live.values() for name in references(entry))
    found = []
    for name in backend.list_names(top):
        lease = lease_of(name)
        folder = f"{top}/{name}/"
        if lease is not None and lease < settings.lease and not needed.touches(folder):
            found.append(folder)
    return found


def _sweep(backend: Backend, folders: Iterable[str]) -> None:
    """Remove what killed writers left unnamed in dead folders, on file systems without O_TMPFILE."""
    for folder in folders:
        path = backend.local_path(folder.rstrip("/")) if folder.endswith("/") else None
        if path is not None and Path(path).is_dir():
            for name in os.listdir(path):
                if name.startswith(TEMPORARY_PREFIX):
                    with suppress(FileNotFoundError, BlockingIOError):
                        remove_unlocked(f"{path}/{name}")
