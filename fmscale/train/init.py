"""The first weights of a run from `train.init`: another run's checkpoint, or a folder in Hugging Face's format."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmscale.checkpoint.base import BASE, open_base
from fmscale.checkpoint.catalog import list_checkpoints, parse_address
from fmscale.checkpoint.checkpoint import Checkpoint, open_in
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.names import REFERENCE
from fmscale.checkpoint.read.compatibility import differences, refuse_other_model
from fmscale.checkpoint.read.meta import decoder_section, inherited, section
from fmscale.checkpoint.read.restore import restore
from fmscale.config import Config, ModelConfig, as_yaml
from fmscale.config.model import InitModelConfig
from fmscale.errors import ConfigError, StoreError
from fmscale.models import build
from fmscale.models.decoder import SCORE
from fmscale.models.hf import HfFolder, open_hf_folder
from fmscale.models.weights import compare_shapes
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, data_digest, metadata_digest
from fmscale.store.open import open_store
from fmscale.text import scrub
from fmscale.train.engine.protocol import Engine
from fmscale.train.model_changes import SHAPES, refuse_adapter_changes, section_changes
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
    base: Checkpoint | None = None
    """Checkpoint of the frozen weights of an adapter run: the source itself, or the base of the adapter run there."""
    lacks: frozenset[str] = frozenset()
    """Names of the weights that keep their values, as the source has none for them."""
    unread: bool = False
    """True if the source has weights beside those of the model: of a reference, or of a score."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the imported model behind the weights, which the run keeps."""
        return inherited(self.source.meta) if isinstance(self.source, Checkpoint) else {}


def with_model(config: Config, backend: Backend) -> Config:
    """The config with the model that `model.kind: init` stands for: of the run's newest checkpoint, or of the source of
    its first state. Raises ConfigError, with the place, for a run with neither; StoreError.
    """
    model = config.model
    if not isinstance(model, InitModelConfig):
        return config
    own, fork = list_checkpoints(backend, config.train.run), config.train.resume
    address = config.train.run if own else (config.train.init or "") if fork in ("auto", "never") else fork
    if not address:
        raise ConfigError(
            f"{config.place('model.kind')} is init, and this run has neither checkpoints nor train.init",
            found="train.init: null",
            remedy="Give train.init, or describe the model (model.kind: decoder).",
        )
    if own or not _is_folder(address):
        store, mark, name = address.rpartition("#")
        run, _, step = name.partition("@")
        if mark:
            backend = open_store(store, read_only=True, deadline=config.store.deadline)
        require_checkpoint(config, "train.init", backend, run, step)
        meta = open_in(backend, run, step or "auto").meta
        meta = open_base(backend, meta).meta if BASE in meta else meta
        there = replace(decoder_section(meta, "model.kind: init"), vocab_size=int(meta["vocab_size"]))
    else:
        there = open_hf_folder(Path(address).expanduser()).config
    changes = {name: getattr(model, name) for name in ("score", "dropout", "attention_backend")}
    return replace(config, model=replace(there, **changes))


def _is_folder(address: str) -> bool:
    return "#" not in address and ("/" in address or address.startswith((".", "~")))


def find_init(
    config: Config, backend: Backend, vocab_size: int | None, tokenizer: str | None, *, deadline: float | None = None
) -> Init:
    """Find the weights that `train.init` names and compare them with the run's model; reads no tensor. `tokenizer` is
    the digest of the run's tokenizer, if known; `deadline` bounds requests to another store, in seconds.

    Raises ConfigError or StoreError, with the place of `train.init`.
    """
    address, place = config.train.init or "", config.place("train.init")
    try:
        if not address:
            raise ConfigError(
                f"{config.place('adapter')} needs a base, and this run has neither checkpoints nor train.init",
                found="train.init: null",
                remedy="Give train.init: the run whose weights stay frozen under the adapter.",
            )
        if _is_folder(address):
            path = Path(address).expanduser()
            if config.adapter is not None:
                raise ConfigError(
                    "the base of an adapter must be a run: a folder cannot be kept as long as its adapters",
                    found=address,
                    remedy=f"`fmscale import {address} --store {config.store.url} --run base`, then train.init: base.",
                )
            folder = open_hf_folder(path)
            warning = _compare(config.model, vocab_size, folder.config, str(path))
            shapes = _shapes(config, vocab_size)
            lacks = frozenset({SCORE} - folder.shapes.keys())
            compare_shapes({name: shapes[name] for name in shapes.keys() - lacks}, folder.shapes)
            return Init(shown=str(path), source=folder, warning=warning, lacks=lacks)
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
    found = open_in(backend, run, step or "auto")
    shown = scrub(f"{store}{mark}{run}@{found.step}")
    base = _base(config, found, shown)
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
    whole = base or found
    there = {tensor.name for tensor in whole.manifest.tensors}
    begun = [tensor for tensor in asked if tensor.name in there or tensor.name != SCORE]
    unread = any(name == SCORE or name.startswith(REFERENCE) for name in there - {tensor.name for tensor in asked})
    answers = [differences(whole.manifest, begun, convert=True)]
    refuse_other_model(whole.manifest, answers, shown, weights=True, partial=unread)
    if len(begun) < len(asked):
        warning = "; ".join(filter(None, (warning, f"{shown} is no reward model: {SCORE} begins at 0")))
    lacks = frozenset({SCORE}) - there
    return Init(shown=shown, source=found, warning=warning, base=base, lacks=lacks, unread=unread)


def _base(config: Config, found: Checkpoint, shown: str) -> Checkpoint | None:
    """The base of a new adapter run; None for a run that trains all weights. Raises ConfigError."""
    if BASE not in found.meta:
        return None if config.adapter is None else found
    if config.adapter is None:
        raise ConfigError(
            f"{shown} has an adapter alone, and this run trains all weights",
            found="adapter: null",
            remedy=f"`fmscale adapter merge {shown} --run NAME` makes a run of whole weights for train.init.",
        )
    refuse_adapter_changes(config, found.meta, shown)
    return open_base(found.backend, found.meta, deadline=config.store.deadline)


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
    weights = [
        replace(piece, name=piece.name.removeprefix(REFERENCE))
        for piece in engine.pieces(save=False)
        if piece.state == "weight" and piece.name not in init.lacks
    ]
    if isinstance(source, HfFolder):
        digest = _folder_digest(session, source)
        for piece in weights:
            # The file is mapped: a rank reads the pages of its range, one tensor at a time.
            piece.tensor.copy_(source.read(piece.name).view(-1)[piece.start : piece.start + piece.count])
    else:
        # A job of that run may commit another checkpoint between the looks of two ranks.
        which = f"entry{session.from_rank_0('entry of the first weights', source.found.entry, session.stop)}"
        options: dict[str, Any] = {"which": which, "waits": session.waits, "stop": session.stop, "weights": True}
        if source is not init.base:  # a base has no weights of the adapter
            restore(source.backend, source.run, weights, partial=init.unread, convert=True, **options)
        digest, facts["step"] = source.found.body["manifest"]["digest"], source.step
    engine.restored(0)
    return {**facts, "digest": digest}


def _folder_digest(session: Session, folder: HfFolder) -> str:
    """Digest of the names and contents of a folder's files, of which each rank reads a share."""
    share = folder.files[session.world.rank :: session.world.world_size]
    digests = {file.name: data_digest(np.memmap(file, np.uint8, "r").data) for file in share}
    sizes = {file.name: file.stat().st_size for file in folder.files}
    told = json.dumps([sizes, digests])
    answers = session.waits.barrier("digest of the first weights", value=told, stop=session.stop)
    for number, (there, theirs) in enumerate(map(json.loads, answers)):
        digests |= theirs
        if there != sizes:
            raise ConfigError(
                f"{session.config.place('train.init')} is another folder on rank {number} than on this rank",
                found=f"{there}, here {sizes}",
                remedy="Copy the same folder to every node.",
            )
    return metadata_digest(canonical_json(digests))
