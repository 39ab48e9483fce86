"""A folder for a process's unfinished segments, and the removal of folders of killed processes."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fmscale.store.segments.array_writer import scratch_errors

PREFIX = "fmscale-ingest-"
LOCK = "lock"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent`, removed afterwards; folders of dead processes are removed first.

    Raises StoreFull or StoreError if the folder cannot be written.
    """
    with scratch_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with scratch_errors(folder):
            lock = (folder / f"{LOCK}.new").open("wb")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / f"{LOCK}.new").rename(folder / LOCK)  # other processes see it locked only
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove folders of dead processes: a living process holds the lock in its folder."""
    for folder in parent.glob(f"{PREFIX}*"):
        # A folder of another user, or a folder that vanishes meanwhile, is left alone.
        with suppress(OSError), (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
