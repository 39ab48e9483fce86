"""Checkpoints of a run, read from its log, and their addresses: STORE_URL#RUN, STORE_URL#RUN@STEP."""

from dataclasses import dataclass
from typing import Any

from fmscale.checkpoint.format.manifest import CheckpointManifest, decode
from fmscale.checkpoint.format.names import KIND, run_log
from fmscale.checkpoint.format.seal import check_version
from fmscale.checkpoint.persist.retention import verified
from fmscale.errors import ConfigError, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.retirement import RetirementState, replay
from fmscale.store.log.runs import require_run


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """A checkpoint in the log."""

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
    """All live checkpoints of a run, oldest first. Raises StoreError."""
    state = replay(run_log(backend, run), state)
    marked = verified(state)
    return [
        CheckpointEntry(
            entry=entry.number,
            lease=entry.body["epoch"],
            time=entry.time,
            verified=entry.number in marked,
            body=entry.body,
            **{name: entry.body[name] for name in ("step", "folder", "world_size", "bytes", "referenced")},
        )
        for entry in state.live.values()
        if entry.kind == KIND
    ]


def pick(found: list[CheckpointEntry], which: int | str, where: str) -> list[CheckpointEntry]:
    """Candidates for a restore, the first choice first. `auto` gives all checkpoints, newest first; a step gives
    its checkpoints; `entryN` gives the checkpoint of log entry N. Raises ConfigError if no checkpoint matches `which`.
    """
    newest_first = sorted(found, key=lambda checkpoint: checkpoint.entry, reverse=True)
    if which == "auto":
        return newest_first
    text = str(which)
    if text.removeprefix("entry").isdecimal():
        number = int(text.removeprefix("entry"))
        chosen = [save for save in newest_first if (save.entry if text.startswith("entry") else save.step) == number]
        if chosen:
            return chosen
    have = ", ".join(str(checkpoint.step) for checkpoint in found[-20:]) or "none"
    raise ConfigError(
        f"{where} has no such checkpoint", found=which, remedy=f"Steps there: {have}. Write a step, entryN, or auto."
    )


def load_manifest(backend: Backend, found: CheckpointEntry) -> CheckpointManifest:
    """Read and check a checkpoint's manifest. Raises ObjectNotFound, CorruptData, FormatError, StoreError."""
    check_version(found.body["format_version"], f"checkpoint {found.entry}")
    manifest = found.body["manifest"]
    return decode(backend.get(manifest["key"]), manifest["digest"], manifest["key"])


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
    """The first choice of `pick`. Raises ConfigError for an unknown run or `which`, StoreError for an empty run."""
    checkpoints = list_checkpoints(backend, run)
    if not checkpoints:
        require_run(backend, run)
        raise StoreError(
            "the run has no checkpoints",
            found=f"{backend.url}, run {run}",
            remedy="`fmscale train` saves one every checkpoint.every steps, at a stop and at the end.",
        )
    return pick(checkpoints, which, f"run {run}")[0]
