"""One commit for all ranks: rank 0's persist process waits for the seals and appends the log entry."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fmscale.checkpoint.format.manifest import encode, merge
from fmscale.checkpoint.format.names import FORMAT_VERSION, KIND, manifest_key, refused_key, seal_key
from fmscale.checkpoint.format.seal import Seal, decode_seal
from fmscale.checkpoint.persist.heartbeat import Listener
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.persist.rank_part import refusal
from fmscale.checkpoint.snapshot.copy_progress import NEXT, SaveFailed
from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import metadata_digest
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.log import Log
from fmscale.store.log.retirement import RetirementState, commit, replay

SHORTEST_PAUSE, SHORTEST_PAUSE_LOCAL = 0.01, 0.002
LONGEST_PAUSE = 2.0
"""Seconds between looks at the store: a tenth of the time waited so far, within these limits. A look takes 30 us
on a file system; an object store charges for each look.
"""
FETCHES = 16
"""Seals that are fetched at once: 512 one after another would take 10 s at 20 ms a request."""
KILLED = "They were probably killed: their own logs, or the scheduler's, say more."


class _Already(Exception):
    """The folder is already committed, by this process or another process of rank 0."""

    def __init__(self, entry: LogEntry) -> None:
        super().__init__(entry.number)
        self.entry = entry


@dataclass(kw_only=True)
class RunState(RetirementState):
    """State of a run's log, with the entries of retired checkpoints too."""

    committed: dict[str, LogEntry] = field(default_factory=dict)
    """Entries of all checkpoints, by folder."""
    own: str = ""
    """Folder that this process is committing."""

    def apply(self, entry: LogEntry) -> None:
        """Apply a log entry. Raises _Already for an entry that commits `own`."""
        super().apply(entry)
        if entry.kind == KIND:
            self.committed[entry.body["folder"]] = entry
            if entry.body["folder"] == self.own:
                raise _Already(entry)


def gather_seals(
    backend: Backend,
    settings: SaveSettings,
    job: SaveJob,
    own: Seal,
    closing: Callable[[], bool],
    alone: Callable[[], bool] = lambda: False,
) -> list[Seal]:
    """Wait for all ranks' seals and return them by rank. Raises SaveFailed for a refusal, after the deadline, once
    `closing`, or if this process is `alone` (its trainer has ended) and an unsealed rank gives no sign of life.
    """
    if settings.world_size == 1:
        return [own]
    seals = {settings.rank: own}
    listener = Listener(backend, job.folder, alone)
    for waited in _looks(backend, job, settings.config.seal_seconds, closing):  # noqa: B007
        names = _names(backend, job.folder)
        sealed: dict[int, str] = {}
        for rank in sorted(set(range(settings.world_size)) - seals.keys()):
            key = seal_key(job.folder, rank)
            if key.rsplit("/", 1)[-1] in names:
                sealed[rank] = key
            elif refused_key(job.folder, rank).rsplit("/", 1)[-1] in names:
                reason = (refusal(backend, job, rank) or "").rstrip(".")
                raise SaveFailed(f"rank {rank} did not save step {job.step}: {reason}", remedy=NEXT)
        with ThreadPoolExecutor(FETCHES) as pool:
            for (rank, key), data in zip(sealed.items(), pool.map(backend.get, sealed.values()), strict=True):
                seals[rank] = decode_seal(data, key)
        missing = [rank for rank in range(settings.world_size) if rank not in seals]
        if not missing:
            return [seals[rank] for rank in range(settings.world_size)]
        if gone := listener.silent(missing):
            raise SaveFailed(
                f"ranks {gone[:8]} have not sealed step {job.step} and give no sign of life", remedy=KILLED
            )
    raise SaveFailed(
        f"ranks {missing[:8]} did not seal step {job.step} within {waited:.0f} s",
        remedy="Look at their logs; allow more with checkpoint.seal_seconds if the store is slow.",
    )


def commit_seals(log: Log, settings: SaveSettings, job: SaveJob, seals: list[Seal], state: RunState) -> LogEntry:
    """Store the manifest and append the entry that makes the checkpoint exist; durable when this returns.

    Returns the existing entry if an earlier process of this rank has committed. Raises LeaseLost under an old lease,
    Conflict if a referenced checkpoint was retired, StoreError, FmscaleError for pieces with a gap or overlap.
    """
    for rank, seal in enumerate(seals):
        expected = (job.step, job.folder, settings.world_size, rank)
        if (seal.step, seal.folder, seal.world_size, seal.rank) != expected:
            raise SaveFailed(
                f"rank {rank} sealed another save under this name",
                found=f"step {seal.step}, rank {seal.rank} of {seal.world_size} in {seal.folder}",
                remedy="Let one job of the run write at a time.",
            )
    manifest = merge(seals)
    data = encode(manifest)
    key = manifest_key(job.folder)
    log.backend.put(key, data)
    folders = sorted({file.key.rsplit("/", 1)[0] + "/" for file in manifest.files} | {job.folder + "/"})
    body = {
        "format_version": FORMAT_VERSION,
        "step": job.step,
        "epoch": settings.lease,
        "folder": job.folder,
        "world_size": settings.world_size,
        "manifest": {"key": key, "digest": metadata_digest(data), "bytes": len(data)},
        "objects": folders,
        "bytes": sum(seal.bytes for seal in seals),
        "referenced": sum(seal.referenced for seal in seals),
        "files": len(manifest.files),
        "tensors": len(manifest.tensors),
    }
    if job.meta and (score := job.meta.get("score")) is not None:
        body["score"] = score
    replay(log, state)
    if job.folder in state.committed:
        return state.committed[job.folder]
    # `state` applies every log entry before the new entry is appended, so an earlier commit of the folder is noticed.
    state.own = job.folder
    try:
        return commit(log, KIND, body, folders, lease=settings.lease, state=state)
    except _Already as already:
        return already.entry
    finally:
        state.own = ""


def await_commit(
    log: Log,
    settings: SaveSettings,
    job: SaveJob,
    state: RunState,
    closing: Callable[[], bool],
    alone: Callable[[], bool] = lambda: False,
) -> LogEntry:
    """Wait until rank 0 has committed the save, and return its entry. Raises SaveFailed if rank 0 gave up, after the
    deadline, or if this process is `alone` and rank 0 gives no sign of life.
    """
    listener = Listener(log.backend, job.folder, alone)
    for waited in _looks(log.backend, job, settings.config.seal_seconds + settings.deadline, closing):  # noqa: B007
        try:
            replay(log, state)
            if job.folder in state.committed:
                return state.committed[job.folder]
            reason = refusal(log.backend, job, 0)
            if reason is not None:
                raise SaveFailed(f"rank 0 gave up the save of step {job.step}: {reason.rstrip('.')}", remedy=NEXT)
        except StoreUnavailable:
            pass  # the next look asks again, until the deadline
        if listener.silent([0]):
            raise SaveFailed(f"rank 0 has not committed step {job.step} and gives no sign of life", remedy=KILLED)
    raise SaveFailed(
        f"rank 0 did not commit step {job.step} within {waited:.0f} s",
        remedy="Look at its log; allow more with checkpoint.seal_seconds if the store is slow.",
    )


def _looks(backend: Backend, job: SaveJob, seconds: float, closing: Callable[[], bool]) -> Iterator[float]:
    """Yield the seconds waited at each look at the store: at least once, until `seconds` are over or `closing`."""
    shortest = SHORTEST_PAUSE_LOCAL if backend.local_path(job.folder) is not None else SHORTEST_PAUSE
    begin = time.monotonic()
    while True:
        waited = time.monotonic() - begin
        yield waited
        if waited > seconds or closing():
            return
        time.sleep(min(LONGEST_PAUSE, max(shortest, waited / 10)))


def _names(backend: Backend, folder: str) -> set[str]:
    try:
        return set(backend.list_names(folder))
    except StoreUnavailable:
        return set()
