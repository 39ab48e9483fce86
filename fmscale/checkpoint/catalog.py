"""Checkpoints of a run, read from its log, and their addresses: STORE_URL#RUN, or with @STEP or @best."""

import logging
from dataclasses import dataclass
from typing import Any

from fmscale.checkpoint.format.manifest import CheckpointManifest, decode
from fmscale.checkpoint.format.names import KIND, age_of, checkpoints_folder, run_log
from fmscale.checkpoint.format.seal import check_version
from fmscale.checkpoint.persist.retention import verified
from fmscale.errors import ConfigError, CorruptData, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.store.keys import damaged
from fmscale.store.log.entry import LogEntry, check_inside
from fmscale.store.log.retirement import RetirementState, replay
from fmscale.store.log.runs import require_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """A checkpoint in the log."""

    run: str
    entry: int
    """Number of its log entry."""
    step: int
    lease: int
    """Number of the lease under which the checkpoint was committed."""
    time: float
    """Seconds since 1970, by the writer's clock."""
    folder: str
    world_size: int
    """Ranks that saved it."""
    bytes: int
    """Bytes of tensors written for it."""
    referenced: int
    """Bytes of tensors that earlier checkpoints' files hold."""
    verified: bool
    """True if a later read of every byte found no damage."""
    body: dict[str, Any]


def list_checkpoints(backend: Backend, run: str, state: RetirementState | None = None) -> list[CheckpointEntry]:
    """All live checkpoints of a run, oldest first. Raises StoreError, and CorruptData for an entry of another run."""
    state = replay(run_log(backend, run), state)
    marked = verified(state)
    return [_entry(run, entry, marked) for entry in state.live.values() if entry.kind == KIND]


def _entry(run: str, entry: LogEntry, marked: set[int]) -> CheckpointEntry:
    body = entry.body
    try:
        check_inside(entry, [body["folder"], body["manifest"]["key"], *body["objects"]], "checkpoints/")
        numbers = {name: body[name] for name in ("step", "world_size", "bytes", "referenced")}
        if all(type(number) is int and number >= 0 for number in numbers.values()):
            return CheckpointEntry(
                run=run,
                entry=entry.number,
                lease=body["epoch"],
                time=entry.time,
                folder=body["folder"],
                verified=entry.number in marked,
                body=body,
                **numbers,
            )
        found: object = numbers
    except (KeyError, TypeError, AttributeError) as error:
        found = repr(error)
    raise CorruptData(
        f"entry {entry.number} of the log {entry.log} is no checkpoint",
        found=found,
        remedy="Restore this log from a copy of the store.",
    )


def warn_of_newer(backend: Backend, run: str, found: list[CheckpointEntry]) -> None:
    """Log a line if a folder is newer than all checkpoints in the log: the log may have lost its newest entry."""
    top = checkpoints_folder(run)
    newest = max((age for entry in found if (age := age_of(entry.folder))), default=())
    if newer := [name for name in backend.list_names(top) if (age := age_of(name)) and age > newest]:
        logger.warning(
            "%s/%s is newer than every checkpoint in the log: a killed save leaves such a folder, a running save has "
            "it, and a lost log entry would too",
            top,
            ", ".join(newer),
        )


def pick(found: list[CheckpointEntry], which: int | str, where: str) -> list[CheckpointEntry]:
    """Candidates for a restore, the first choice first. `auto` gives all checkpoints, newest first; a step gives its
    checkpoints; `best` that of the lowest held-out loss (`evaluation.best`); `entryN` that of log entry N. Raises
    ConfigError if no checkpoint matches `which`.
    """
    newest_first = sorted(found, key=lambda checkpoint: checkpoint.entry, reverse=True)
    if which == "auto":
        return newest_first
    text = str(which)
    if text == "best":
        scored = [checkpoint for checkpoint in found if "score" in checkpoint.body]
        if scored:
            return [min(scored, key=lambda checkpoint: (checkpoint.body["score"], checkpoint.entry))]
        raise ConfigError(
            f"{where} has no checkpoint with a held-out loss",
            found=which,
            remedy="evaluation.best names the set whose loss a run's checkpoints record.",
        )
    if text.removeprefix("entry").isdecimal():
        number = int(text.removeprefix("entry"))
        chosen = [save for save in newest_first if (save.entry if text.startswith("entry") else save.step) == number]
        if chosen:
            return chosen
    have = ", ".join(str(checkpoint.step) for checkpoint in found[-20:]) or "none"
    raise ConfigError(
        f"{where} has no such checkpoint",
        found=which,
        remedy=f"Steps there: {have}. Write a step, best, entryN, or auto.",
    )


def load_manifest(backend: Backend, found: CheckpointEntry) -> CheckpointManifest:
    """Read and check a checkpoint's manifest. Raises ObjectNotFound, CorruptData, FormatError, StoreError."""
    check_version(found.body.get("format_version"), f"checkpoint {found.entry}")
    recorded = found.body["manifest"]
    manifest = decode(backend.get(recorded["key"]), recorded.get("digest", ""), recorded["key"])
    body, folders = found.body, {file.key.rpartition("/")[0] + "/" for file in manifest.files}
    here = {**manifest.head, "files": len(manifest.files), "tensors": len(manifest.tensors)}
    same = ("step", "folder", "world_size", "files", "tensors")
    differ = {name: here[name] for name in same if here[name] != body.get(name)}
    if differ or not folders.issubset(body["objects"]):
        raise CorruptData(
            f"the manifest {recorded['key']} is not the one of its log entry",
            found=differ or sorted(folders),
            remedy=damaged(recorded["key"]),
        )
    return manifest


def parse_address(address: str) -> tuple[str, str, str]:
    """Split STORE_URL#RUN[@WHICH] into (store URL, run, which). Raises ConfigError."""
    url, mark, place = address.rpartition("#")
    run, at, which = place.partition("@")
    if not mark or not url or not run or (at and not which):
        raise ConfigError(
            "not the address of a checkpoint",
            found=address,
            remedy="Write STORE_URL#RUN for a run's newest, STORE_URL#RUN@STEP for one step.",
        )
    return url, run, which or "auto"


def newest(backend: Backend, run: str, which: int | str = "auto") -> CheckpointEntry:
    """The first choice of `pick`. Raises ConfigError for an unknown run or `which`, StoreError for an empty run. Logs
    the line of `warn_of_newer`.
    """
    checkpoints = list_checkpoints(backend, run)
    warn_of_newer(backend, run, checkpoints)
    if not checkpoints:
        require_run(backend, run)
        raise StoreError(
            "the run has no checkpoints",
            found=f"{backend.url}, run {run}",
            remedy="`fmscale train` saves one every checkpoint.every steps, at a stop and at the end.",
        )
    return pick(checkpoints, which, f"run {run}")[0]
