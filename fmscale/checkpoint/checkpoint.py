"""A checkpoint as logical tensors by name, whichever ranks wrote it."""

from typing import Any

import torch

from fmscale.checkpoint.catalog import CheckpointEntry, load_manifest, newest, parse_address
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.manifest import CheckpointManifest
from fmscale.checkpoint.format.piece import elements
from fmscale.checkpoint.read.reader import Reader
from fmscale.checkpoint.read.restore import into
from fmscale.errors import ConfigError
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store


class Checkpoint:
    """Read-only access to a checkpoint. `tensor` and `read` read from the store at each call, and check every chunk."""

    def __init__(self, backend: Backend, run: str, found: CheckpointEntry, manifest: CheckpointManifest) -> None:
        self.backend = backend
        self.run = run
        self.found = found
        self.manifest = manifest
        self._reader = Reader(backend, manifest)

    @property
    def step(self) -> int:
        """Optimizer step."""
        return self.found.step

    @property
    def meta(self) -> dict[str, Any]:
        """Values that were saved with the tensors: loader state, schedule, config."""
        return self.manifest.meta

    @property
    def names(self) -> list[str]:
        """Names of the logical tensors, in the order they were saved."""
        return list(dict.fromkeys(tensor.name for tensor in self.manifest.tensors))

    def states(self, name: str) -> list[str]:
        """States of a tensor: `weight`, `exp_avg`, ... Raises ConfigError for an unknown name."""
        states = [tensor.state for tensor in self.manifest.tensors if tensor.name == name]
        if not states:
            raise self._unknown(name, "weight")
        return states

    def info(self, name: str, state: str = "weight") -> Tensor:
        """Type and shape of a tensor. Raises ConfigError for an unknown tensor."""
        return self.manifest.tensors[self._number(name, state)]

    def tensor(self, name: str, state: str = "weight") -> torch.Tensor:
        """The whole tensor, on the CPU. Raises ConfigError for an unknown tensor, CorruptData, StoreError."""
        shape = self.info(name, state).shape
        return self.read(name, state).view(shape)

    def read(self, name: str, state: str = "weight", start: int = 0, count: int | None = None) -> torch.Tensor:
        """Read elements [start, start + count) of the flattened tensor (to its end by default) as a 1-D tensor, from
        the chunks that hold them. Raises as `tensor`.
        """
        number = self._number(name, state)
        info = self.manifest.tensors[number]
        size = elements(info.shape)
        count = size - start if count is None else count
        if not 0 <= start <= start + count <= size:
            raise ConfigError(
                f"{name} ({state}) has no such range", found=(start, count), remedy=f"It has {size} elements."
            )
        target = torch.empty(count, dtype=getattr(torch, info.dtype))
        self._reader.read(list(self._reader.requests(number, start, count, into(target))))
        return target

    def _number(self, name: str, state: str) -> int:
        number = self.manifest.number.get((name, state))
        if number is None:
            raise self._unknown(name, state)
        return number

    def _unknown(self, name: str, state: str) -> ConfigError:
        import difflib

        near = difflib.get_close_matches(name, self.names, 3)
        states = [tensor.state for tensor in self.manifest.tensors if tensor.name == name]
        return ConfigError(
            f"step {self.step} of run {self.run} has no such tensor",
            found=f"{name} ({state})",
            remedy=f"Its states: {', '.join(states)}." if states else f"Nearest names: {', '.join(near)}.",
        )


def open_checkpoint(address: str, *, deadline: float = 60.0) -> Checkpoint:
    """The checkpoint at STORE_URL#RUN (the newest) or STORE_URL#RUN@STEP.

    Raises ConfigError for a malformed address or an unknown step, StoreError, CorruptData for a damaged manifest.
    """
    url, run, which = parse_address(address)
    backend = open_store(url, read_only=True, deadline=deadline)
    return open_in(backend, run, which)


def open_in(backend: Backend, run: str, which: int | str = "auto") -> Checkpoint:
    """The checkpoint of a run in a store that is already open. Raises as `open_checkpoint`."""
    entry = newest(backend, run, which)
    return Checkpoint(backend, run, entry, load_manifest(backend, entry))
