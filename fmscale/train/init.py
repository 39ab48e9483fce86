"""The first weights of a run from `train.init`: another run's checkpoint, or a folder in Hugging Face's format."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmscale.checkpoint.catalog import parse_address
from fmscale.checkpoint.checkpoint import Checkpoint, open_in
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.read.compatibility import differences, refuse_other_model
from fmscale.checkpoint.read.meta import section
from fmscale.checkpoint.read.restore import restore
from fmscale.config import Config, ModelConfig, as_yaml
from fmscale.errors import ConfigError, StoreError
from fmscale.models import build
from fmscale.models.hf import HfFolder, open_hf_folder
from fmscale.models.weights import compare_shapes
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, data_digest, metadata_digest
from fmscale.store.open import open_store
from fmscale.text import scrub
from fmscale.train.engine.protocol import Engine
from fmscale.train.model_changes import SHAPES, section_changes
from fmscale.train.resume import require_checkpoint
from fmscale.train.session import Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Init:
    """The source of a run's first weights, found and compared with the run's model."""

    shown: str
    """Address of the checkpoint with its step, or the folder; without credentials."""
    source: Checkpoint | HfFolder
    warning: str
    """Fields of the model that differ and leave the shapes as they are; empty without a difference."""


def find_init(
    config: Config, backend: Backend, vocab_size: int | None, tokenizer: str | None, *, deadline: float | None = None
) -> Init:
    """Find the weights that `train.init` names and compare them with the run's model; reads no tensor. `tokenizer` is
    the digest of the run's tokenizer, if known; `deadline` bounds requests to another store, in seconds.

    Raises ConfigError or StoreError, with the place of `train.init`.
    """
    address, place = config.train.init or "", config.place("train.init")
    try:
        if "#" not in address and ("/" in address or address.startswith((".", "~"))):
            path = Path(address).expanduser()
            folder = open_hf_folder(path)
            warning = _compare(config.model, vocab_size, folder.config, str(path))
            compare_shapes(_shapes(config, vocab_size), folder.shapes)
            return Init(shown=str(path), source=folder, warning=warning)
        if "#" in address:
            backend = open_store(parse_address(address)[0], read_only=True, deadline=deadline or config.store.deadline)
        return _find_checkpoint(config, backend, address, vocab_size, tokenizer)
    except (ConfigError, StoreError) as error:
        cause = error.cause if error.cause.startswith(place) else f"{place}: {error.cause}"
        kind = type(error) if isinstance(error, StoreError) else ConfigError
        raise kind(cause, found=error.found, remedy=error.remedy) from error


def _find_checkpoint(
    config: Config, backend: Backend, address: str, vocab_size: int | None, tokenizer: str | None
) -> Init:
    store, mark, name = address.rpartition("#")
    run, _, step = name.partition("@")
    require_checkpoint(config, "train.init", backend, run, step)
    found = open_in(backend, run, int(step) if step else "auto")
    shown = scrub(f"{store}{mark}{run}@{found.step}")
    theirs = found.meta.get("tokenizer")
    if tokenizer is not None and theirs != tokenizer:
        raise ConfigError(
            f"{shown} was trained with another tokenizer than the datasets have",
            found=f"{theirs}, the datasets have {tokenizer}",
            remedy="Ingest the data with that tokenizer. To keep the weights and change the tokenizer, name the folder "
            "of `fmscale checkpoint export --format hf`.",
        )
    warning = ""
    if "model" in found.meta.get("config", {}):
        source = replace(section(found.meta, "model", ModelConfig), vocab_size=found.meta["vocab_size"])
        warning = _compare(config.model, vocab_size, source, shown)
    asked = [Tensor(name, "weight", "float32", shape) for name, shape in _shapes(config, vocab_size).items()]
    refuse_other_model(found.manifest, [differences(found.manifest, asked, convert=True)], shown, weights=True)
    return Init(shown=shown, source=found, warning=warning)


def _shapes(config: Config, vocab_size: int | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the run's weights by name. The model is built without memory."""
    with torch.device("meta"):
        model = build(config.model, vocab_size=vocab_size)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _compare(model: object, vocab_size: int | None, source: ModelConfig, shown: str) -> str:
    """Raise ConfigError for fields that give other tensors, heads or meanings of numbers; return a warning of other
    fields that differ. A class of the user's own has other fields: its shapes alone are compared.
    """
    if not isinstance(model, ModelConfig):
        return ""
    changes = section_changes(replace(model, vocab_size=vocab_size), source)
    shapes = {key: there for key, (there, _) in changes.items() if key in SHAPES}
    if shapes:
        raise ConfigError(
            f"{shown} has another model than `model:` describes",
            found="; ".join(f"{key} {there} there, {changes[key][1]} here" for key, there in shapes.items()),
            remedy=f"Copy into `model:`: {', '.join(as_yaml(shapes).splitlines())}; or name other weights.",
        )
    return "; ".join(f"model.{key} is {here}, and {shown} has {there}" for key, (there, here) in changes.items())


def load_init(session: Session, init: Init, engine: Engine) -> dict[str, Any]:
    """Fill the engine's weights, each rank its own ranges, and return the facts that the run keeps of their source:
    address, step and digest. All ranks call it.

    Raises CorruptData for a damaged checkpoint, ConfigError for a folder that ranks see differently, StoreError.
    """
    source, facts = init.source, dict[str, Any](address=init.shown)
    if init.warning and session.world.rank == 0:
        logger.warning("%s: %s", session.config.place("train.init"), init.warning)
    weights = [piece for piece in engine.pieces(save=False) if piece.state == "weight"]
    if isinstance(source, HfFolder):
        digest = _folder_digest(session, source)
        for piece in weights:
            # The file is mapped: a rank reads the pages of its range, one tensor at a time.
            piece.tensor.copy_(source.read(piece.name).view(-1)[piece.start : piece.start + piece.count])
    else:
        # A job of that run may commit another checkpoint between the looks of two ranks.
        which = f"entry{session.from_rank_0('entry of the first weights', source.found.entry)}"
        restore(source.backend, source.run, weights, which=which, waits=session.waits, weights=True, convert=True)
        digest, facts["step"] = source.found.body["manifest"]["digest"], source.step
    engine.restored(0)
    return {**facts, "digest": digest}


def _folder_digest(session: Session, folder: HfFolder) -> str:
    """Digest of the names and contents of a folder's files, of which each rank reads a share."""
    share = folder.files[session.world.rank :: session.world.world_size]
    digests = {file.name: data_digest(np.memmap(file, np.uint8, "r").data) for file in share}
    sizes = {file.name: file.stat().st_size for file in folder.files}
    answers = session.waits.barrier("digest of the first weights", value=json.dumps([sizes, digests]))
    for number, (there, theirs) in enumerate(map(json.loads, answers)):
        digests |= theirs
        if there != sizes:
            raise ConfigError(
                f"{session.config.place('train.init')} is another folder on rank {number} than on this rank",
                found=f"{there}, here {sizes}",
                remedy="Copy the same folder to every node.",
            )
    return metadata_digest(canonical_json(digests))
