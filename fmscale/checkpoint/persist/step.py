"""A save on its way through the steps of the persist process, and the type of a step."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Event

from fmscale.checkpoint.format.layout import FileRange
from fmscale.checkpoint.format.seal import Seal, StoredFile, StoredPiece
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.snapshot.copy_progress import CopyProgress
from fmscale.store.backends.protocol import Backend

Known = Mapping[FileRange, tuple[StoredFile, StoredPiece]]
"""Pieces of the last committed checkpoint, by their ranges."""


@dataclass(kw_only=True)
class Save:
    """One rank's part of a save: its snapshot, the means of the worker, and the result of the steps so far."""

    backend: Backend
    settings: SaveSettings
    job: SaveJob
    memory: memoryview
    """The snapshot."""
    copied: CopyProgress
    """Final bytes of the snapshot; they may be written while the trainer copies the rest."""
    known: Known
    pool: Executor
    """Threads that write files."""
    closing: Event
    """Set when the worker ends; a step that waits must then end too."""
    seal: Seal | None = None
    """This rank's files and pieces, once the files are durable."""


PersistStep = Callable[[Save], object]
"""A step of a save: it returns when its work is durable. A StoreError repeats all steps, as far as
`checkpoint.retries` allows; any other error ends the save on all ranks.
"""
