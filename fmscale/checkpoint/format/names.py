"""Keys of objects: runs/RUN/checkpoints/STEP-LEASE/ has one checkpoint's files; no later save writes there.

    rank-00003-000.safetensors           a rank's tensors, few files
    rank-00003-000.safetensors.crc32c    uint32 little-endian checksums of its 64 KiB chunks
    seal-00003.json                      the rank's pieces and files; stored after its files are complete
    refused-00003.json                   in place of a seal: the reason why the rank gave the save up
    manifest.arrow                       all ranks' pieces; the log entry has its digest
    failed.json                          in place of a log entry: the reason why rank 0 gave the save up
    alive-00003                          a counter that the rank advances while it finishes the save without its trainer

A save that was repeated at the same step under the same lease has a third number in the folder's name.
"""

from fmscale.errors import ConfigError
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.log import RUN_KINDS, Log

FORMAT_VERSION = 1
"""Version of seals, manifests and bodies of checkpoint entries; fmscale reads this and every earlier version."""

KIND = "checkpoint"
"""Kind of a checkpoint's log entry."""

REFERENCE = "reference."
"""Beginning of the names of a frozen reference's tensors: a run has them beside those of its model."""

SUMS = ".crc32c"
"""Ending of the object with a file's checksums."""


def run_prefix(run: str) -> str:
    """Folder of a run. Raises ConfigError for a name that is not plain."""
    if not run or "/" in run or "@" in run or "#" in run or run.startswith("."):
        raise ConfigError("a run has a plain name", found=run, remedy="Use letters, digits, '-', '_' and '.' inside.")
    return f"runs/{run}"


def run_log(backend: Backend, run: str) -> Log:
    """The log of a run, in which its checkpoints are committed."""
    return Log(backend, run_prefix(run), RUN_KINDS)


def checkpoints_folder(run: str) -> str:
    """Folder of all checkpoints of a run."""
    return f"{run_prefix(run)}/checkpoints"


def checkpoint_folder(run: str, step: int, lease: int, repeat: int = 0) -> str:
    """Folder of one save: the same on all ranks, and never used again. `lease` is the number of the run's lease."""
    name = f"{step:010d}-{lease:05d}" + (f"-{repeat}" if repeat else "")
    return f"{checkpoints_folder(run)}/{name}"


def age_of(folder: str) -> tuple[int, ...]:
    """(lease, step, repeat) by which the folders of saves are ordered; () for a folder of another kind."""
    parts = folder.rstrip("/").rsplit("/", 1)[-1].split("-")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        return ()
    step, lease, *repeat = map(int, parts)
    return lease, step, *(repeat or [0])


def data_key(folder: str, rank: int, number: int) -> str:
    """Key of a rank's file."""
    return f"{folder}/rank-{rank:05d}-{number:03d}.safetensors"


def seal_key(folder: str, rank: int) -> str:
    """Key of a rank's seal."""
    return f"{folder}/seal-{rank:05d}.json"


def refused_key(folder: str, rank: int) -> str:
    """Key of the reason why a rank gave the save up: in place of its seal, for rank 0 in place of the log entry."""
    return f"{folder}/refused-{rank:05d}.json" if rank else f"{folder}/failed.json"


def manifest_key(folder: str) -> str:
    """Key of the manifest."""
    return f"{folder}/manifest.arrow"


def alive_key(folder: str, rank: int) -> str:
    """Key of a counter: the sign of life of a rank that drains."""
    return f"{folder}/alive-{rank:05d}"
