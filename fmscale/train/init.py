"""The first weights of a run from `train.init`: another run's checkpoint, or a folder in Hugging Face's format."""

import json
import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmscale.checkpoint.catalog import parse_address
from fmscale.checkpoint.checkpoint import Checkpoint, open_in
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.read.compatibility import differences, refuse_other_model
from fmscale.checkpoint.read.meta import section
from fmscale.checkpoint.read.restore import restore
from fmscale.config import Config, ModelConfig, as_yaml
from fmscale.errors import ConfigError
from fmscale.models import build
from fmscale.models.hf import HfFolder, open_hf_folder
from fmscale.models.weights import compare_shapes
from fmscale.runtime.scrub import scrub
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, data_digest, metadata_digest
from fmscale.store.open import open_store
from fmscale.train.engine.protocol import Engine
from fmscale.train.resume import require_checkpoint
from fmscale.train.session import Session

logger = logging.getLogger(__name__)

READ_SECONDS = 3600.0
"""Longest wait for the other ranks' digests of a folder's files."""


@dataclass(frozen=True, kw_only=True)
class Init:
    """The source of a run's first weights, found and compared with the run's model."""

    shown: str
    """Address of the checkpoint with its step, or the folder; without credentials."""
    source: Checkpoint | HfFolder
    """The weights."""
    warning: str
    """Fields of the model that differ and leave the shapes as they are; empty without a difference."""


def find_init(
    config: Config, backend: Backend, vocab_size: int, tokenizer: str | None, *, deadline: float | None = None
) -> Init:
    """Find the weights that `train.init` names and compare them with the run's model; reads no tensor. `tokenizer` is
    the digest of the run's tokenizer, if known; `deadline` bounds requests to another store, in seconds.

    Raises ConfigError with the place of `train.init`, StoreError or CorruptData.
    """
    address, place = config.train.init or "", config.place("train.init")
    if "#" not in address and ("/" in address or address.startswith((".", "~"))):
        return _find_folder(config, Path(address).expanduser(), vocab_size)
    other, name = backend, address
    if "#" in address:
        url, _, _ = parse_address(address)
        other = open_store(url, read_only=True, deadline=deadline or config.store.deadline)
        name = address.rpartition("#")[2]
    run, _, step = name.partition("@")
    require_checkpoint(config, "train.init", other, run, step)
    found = open_in(other, run, int(step) if step else "auto")
    shown = f"{scrub(address).partition('@')[0]}@{found.step}"
    theirs = found.meta.get("tokenizer")
    if tokenizer is not None and theirs != tokenizer:
        raise ConfigError(
            f"{place}: {shown} was trained with another tokenizer than the datasets have",
            found=f"{theirs}, the datasets have {tokenizer}",
            remedy="Ingest the data with that tokenizer. To keep the weights and change the tokenizer, name the folder "
            "of `fmscale checkpoint export --format hf`.",
        )
    warning = ""
    if "model" in found.meta.get("config", {}):
        model = section(found.meta, "model", ModelConfig)
        warning = _compare(config, shown, model, int(found.meta.get("vocab_size", vocab_size)), vocab_size)
    asked = [Tensor(name, "weight", "float32", shape) for name, shape in _shapes(config, vocab_size).items()]
    answers = [differences(found.manifest, asked, convert=True)]
    refuse_other_model(found.manifest, answers, f"{place}: {shown}", weights=True)
    return Init(shown=shown, source=found, warning=warning)


def _find_folder(config: Config, path: Path, vocab_size: int) -> Init:
    place = config.place("train.init")
    try:
        folder = open_hf_folder(path)
        warning = _compare(config, str(path), folder.config, folder.config.vocab_size or 0, vocab_size)
        compare_shapes(_shapes(config, vocab_size), folder.shapes)
    except ConfigError as error:
        cause = error.cause if error.cause.startswith(place) else f"{place}: {error.cause}"
        raise ConfigError(cause, found=error.found, remedy=error.remedy) from error
    return Init(shown=str(path), source=folder, warning=warning)


def _shapes(config: Config, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the run's weights by name. The model is built without memory."""
    with torch.device("meta"):
        model = build(config.model, vocab_size=vocab_size)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _compare(config: Config, shown: str, source: ModelConfig, source_vocab: int, vocab_size: int) -> str:
    """Raise ConfigError for fields of the model that give other shapes; return a warning of others that differ."""
    theirs, ours = _shape_fields(source, source_vocab), _shape_fields(config.model, vocab_size)
    other = {name: value for name, value in theirs.items() if value != ours[name]}
    if other:
        raise ConfigError(
            f"{config.place('train.init')}: {shown} has another model than `model:` describes",
            found="; ".join(f"{name} {value} there, {ours[name]} here" for name, value in other.items()),
            remedy=f"Copy into `model:`: {', '.join(as_yaml(other).splitlines())}; or name other weights.",
        )
    return "; ".join(
        f"model.{name} is {getattr(config.model, name)}, and {shown} has {getattr(source, name)}"
        for name in ("rope_theta", "rope_scaling", "norm_eps", "window", "softcap")
        if getattr(config.model, name) != getattr(source, name)
    )


def _shape_fields(model: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Keys of `model:` that decide the shapes of tensors or their division into heads."""
    return {
        "num_layers": model.num_layers,
        "dim": model.dim,
        "num_heads": model.num_heads,
        "num_kv_heads": model.kv_heads,
        "head_dim": model.head_width,
        "hidden_dim": model.ffn_width,
        "tied": model.tied,
        "vocab_size": vocab_size,
    }


def load_init(session: Session, init: Init, engine: Engine) -> dict[str, Any]:
    """Fill the engine's weights, each rank its own ranges, and return the facts that the run keeps of their source:
    address, step and digest. All ranks call it.

    Raises CorruptData for a damaged checkpoint, ConfigError for a folder that ranks see differently, StoreError.
    """
    if init.warning and session.world.rank == 0:
        logger.warning("%s: %s", session.config.place("train.init"), init.warning)
    weights = [piece for piece in engine.pieces(save=False) if piece.state == "weight"]
    facts: dict[str, Any] = {"address": init.shown}
    if isinstance(init.source, Checkpoint):
        # The run may commit another checkpoint between the looks of two ranks.
        entry = session.from_rank_0("entry of the first weights", init.source.found.entry)
        restore(
            init.source.backend,
            init.source.run,
            weights,
            which=f"entry{entry}",
            waits=session.waits,
            weights=True,
            convert=True,
        )
        facts |= {"step": init.source.step, "digest": init.source.found.body["manifest"]["digest"]}
    else:
        facts["digest"] = _folder_digest(session, init.source)
        for piece in weights:
            # The file is mapped: a rank reads the pages of its range, one tensor at a time.
            piece.tensor.copy_(init.source.read(piece.name).view(-1)[piece.start : piece.start + piece.count])
    engine.restored(0)
    return facts


def _folder_digest(session: Session, folder: HfFolder) -> str:
    """Digest of the names and contents of a folder's files, of which each rank reads a share."""
    rank, size = session.world.rank, session.world.world_size
    mine: Mapping[str, Any] = {
        "sizes": {file.name: file.stat().st_size for file in folder.files},
        "digests": {file.name: _file_digest(file) for file in folder.files[rank::size]},
    }
    answers = session.waits.barrier("digest of the first weights", value=json.dumps(mine), deadline=READ_SECONDS)
    parts = [json.loads(answer) for answer in answers]
    for number, part in enumerate(parts):
        if part["sizes"] != parts[0]["sizes"]:
            raise ConfigError(
                f"{session.config.place('train.init')} is another folder on rank {number} than on rank 0",
                found=f"{part['sizes']}, on rank 0 {parts[0]['sizes']}",
                remedy="Copy the same folder to every node.",
            )
    return metadata_digest(canonical_json({name: value for part in parts for name, value in part["digests"].items()}))


def _file_digest(path: Path) -> str:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        return data_digest(view)
