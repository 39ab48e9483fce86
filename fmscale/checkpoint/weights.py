"""A checkpoint of weights that no training made."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.format.piece import whole
from fmscale.checkpoint.saver import Saver
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import ConfigError, StoreError
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.lease import acquire

Read = Callable[[str], torch.Tensor]


def save_weights(
    backend: Backend, run: str, tensors: Sequence[Tensor], read: Read, meta: dict[str, Any]
) -> CheckpointEntry:
    """Make the run `run` of one checkpoint at step 0 from whole tensors that `read` gives by name; it is durable when
    this returns. Raises ConfigError for a run that exists, StoreError, and the errors of `read`.
    """
    log = run_log(backend, run)
    if next(iter(log.entries()), None) is not None:
        remedy = "Take another name for the run."
        raise ConfigError("The store has a run of this name", found=f"{backend.url}#{run}", remedy=remedy)
    pieces = [whole(tensor.name, read(tensor.name)) for tensor in tensors]
    lease = acquire(log, "weights of another program").number
    saver = Saver(backend.url, run, world=World(), lease=lease, config=CheckpointConfig())
    saver.save(0, pieces, meta, wait=True)
    [*_, report] = saver.close(600.0)
    if report.state != "acknowledged":
        raise StoreError(f"run {run} is not saved", found=report.reason, remedy="See to the store, and try again.")
    return list_checkpoints(backend, run)[-1]
