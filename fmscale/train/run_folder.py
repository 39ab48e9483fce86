"""Checks of the folders that a run writes to; the checks write nothing."""

import os
from pathlib import Path

from fmscale.config import Config
from fmscale.errors import AccessDenied, ConfigError, ObjectNotFound
from fmscale.store.open import parse_url


def run_folder(config: Config) -> Path:
    """The run's folder on this machine."""
    return Path(config.train.folder) / config.train.run


def check_folder(config: Config) -> None:
    """Raise ConfigError if metrics cannot be written to the run's folder on this machine."""
    folder = run_folder(config)
    existing = _nearest(folder)
    if not existing.is_dir():
        problem, remedy = "is not a folder", "Give train.folder or train.run another name, or move the file away."
    elif not _writable(existing):
        problem, remedy = "cannot be written", "Take another train.folder, or change the rights to this one."
    else:
        return
    cause = f"{config.place('train.folder')}: the run writes its metrics to {folder}, and this {problem}"
    raise ConfigError(cause, found=str(existing), remedy=remedy)


def check_store(config: Config) -> None:
    """Raise ConfigError, ObjectNotFound or AccessDenied if the store cannot take a run: its URL is read-only, or
    it is a folder that does not exist or cannot be written. The check does not contact a remote store.
    """
    place, name = parse_url(config.store.url), config.place("store.url")
    if place.read_only:
        raise ConfigError(
            f"{name} says read_only, and a run writes its order and checkpoints to the store",
            found=place.shown,
            remedy="Remove read_only from the URL, or take another store.",
        )
    if place.scheme != "file":
        return
    root = Path(place.bucket)
    if not root.is_dir():
        remedy = "Check the spelling; `fmscale ingest --store FOLDER` makes a store."
        raise ObjectNotFound(f"{name}: there is no such folder", found=str(root), remedy=remedy)
    # Not the root: a user who may only read the datasets can still have a writable folder below runs/.
    existing = _nearest(root / "runs" / config.train.run)
    if not _writable(existing):
        raise AccessDenied(
            f"{name}: a run writes its order and checkpoints to the store, and this cannot be written",
            found=str(existing),
            remedy="Change the rights to it, or how the disk is mounted; or take a store of your own.",
        )


def _nearest(path: Path) -> Path:
    """The path, or the last of its parents that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
