"""Load a model and its tokenizer from a checkpoint in a store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fmscale.checkpoint.base import BASE, open_base
from fmscale.checkpoint.catalog import list_checkpoints, parse_address
from fmscale.checkpoint.checkpoint import Checkpoint, open_in
from fmscale.checkpoint.format.names import REFERENCE
from fmscale.checkpoint.read.meta import decoder_section, section
from fmscale.config import DataConfig, LoraConfig, ModelConfig
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError, DataError
from fmscale.models import Decoder, build, load_weights
from fmscale.models.lora import fix_ratios, wrap
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.templates import ChatTemplate, load_template
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.log.runs import require_run
from fmscale.store.open import open_store

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """Model of a run at a checkpoint, with its tokenizer and data settings."""

    run: str
    step: int
    """Optimizer steps of the checkpoint."""
    digest: str
    """Digest of the checkpoint's manifest, which names all its tensors."""
    backend: Backend
    model: Decoder
    """In eval mode, without gradients."""
    tokenizer: Tokenizer
    """The tokenizer of its training data."""
    template: ChatTemplate | None
    """Chat template of its training data, or of the imported model that it began with."""
    bos: int | None
    """Token that begins a document, if the run's data has one."""
    eos: int | None
    """Token that ends a document, or an answer of the chat template, if the run's data has one."""
    ends: tuple[int, ...]
    """All tokens that end an answer; `eos` is the first."""
    dataset: str
    """The run's first dataset; empty for an imported model."""
    sequence_length: int
    """Tokens of a row in training, for an imported model its longest sequence. The model may accept longer rows, but
    was not trained on later positions."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with BOS first where documents begin with it."""
        ids = self.tokenizer.encode_batch([text])[0].tolist()
        return ids if self.bos is None else [self.bos, *ids]


def open_trained(address: str, *, device: str = "cpu", precision: str | None = None) -> TrainedModel:
    """The model at STORE_URL#RUN (its newest checkpoint) or STORE_URL#RUN@STEP, on `device`. That of an adapter run is
    its base with the adapter beside it, unmerged.

    `precision` is "fp32" or "bf16"; None takes fp32 on a CPU and bf16 elsewhere. Tensors are read one by one.

    Raises ConfigError for a missing run (with the nearest names), a run without a checkpoint, and a run with a
    smaller vocabulary than its tokenizer's; StoreError, CorruptData.
    """
    if precision not in (None, *TYPES):
        raise ConfigError("No such precision", found=precision, remedy=f"Take {' or '.join(TYPES)}.")
    url, run, which = parse_address(address)
    backend = open_store(url, read_only=True)
    checkpoint = _checkpoint(backend, run, which)
    dtype = TYPES[precision or ("fp32" if device == "cpu" else "bf16")]
    config = decoder_section(checkpoint.meta, "generation and evaluation")
    return trained_model(
        backend,
        run,
        checkpoint.meta,
        lambda vocab_size: _model(checkpoint, config, vocab_size, device, dtype),
        digest=checkpoint.found.body["manifest"]["digest"],
    )


def trained_model(
    backend: Backend, run: str, meta: Mapping[str, Any], make: Callable[[int], Decoder], *, digest: str
) -> TrainedModel:
    """A run's model with tokenizer, template and ends by the meta of its checkpoints; `make` gives the model of a
    vocabulary. Raises as `open_trained`.
    """
    tokenizer = from_json(load_tokenizer(backend, meta["tokenizer"]), f"tokenizer {meta['tokenizer']}")
    vocab_size = int(meta["vocab_size"])
    if vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"The vocabulary of run {run} is smaller than its tokenizer's",
            found=f"{vocab_size}, the tokenizer has {tokenizer.vocab_size}",
            remedy="Train with model.vocab_size null or as large as the tokenizer's.",
        )
    data = section(meta, "data", DataConfig) if "data" in meta["config"] else None
    bos, eos = run_framing(backend, meta, tokenizer)
    others = [] if eos is None else [eos, *(i for i in meta.get("ends", ()) if i != eos)]
    return TrainedModel(
        run=run,
        step=int(meta["step"]),
        digest=digest,
        backend=backend,
        model=(model := make(vocab_size)),
        tokenizer=tokenizer,
        template=load_template(backend, meta["template"]) if meta.get("template") else None,
        bos=bos,
        eos=eos,
        ends=tuple(others),
        dataset=data.sources[0].dataset if data else "",
        sequence_length=data.sequence_length if data else model.config.max_seq_len,
    )


def empty_model(
    config: ModelConfig, adapter: LoraConfig | None, *, vocab_size: int, device: str, dtype: torch.dtype
) -> Decoder:
    """A model without values in its weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build(config, vocab_size=vocab_size)
            if adapter is not None:
                wrap(model, adapter)
    finally:
        torch.set_default_dtype(before)
    return model


def _model(checkpoint: Checkpoint, config: ModelConfig, vocab_size: int, device: str, dtype: torch.dtype) -> Decoder:
    adapter = section(checkpoint.meta, "adapter", LoraConfig) if BASE in checkpoint.meta else None
    model = empty_model(config, adapter, vocab_size=vocab_size, device=device, dtype=dtype)
    sources = [checkpoint, open_base(checkpoint.backend, checkpoint.meta)] if BASE in checkpoint.meta else [checkpoint]
    found = {t.name: (source, t.shape) for source in sources for t in source.manifest.tensors if t.state == "weight"}
    shapes = {name: shape for name, (_, shape) in found.items() if not name.startswith(REFERENCE)}
    load_weights(model, lambda name: found[name][0].tensor(name), shapes)
    fix_ratios(model)
    return model.eval().requires_grad_(False)


def _checkpoint(backend: Backend, run: str, which: str) -> Checkpoint:
    if list_checkpoints(backend, run):
        return open_in(backend, run, which)
    require_run(backend, run)
    raise ConfigError(
        f"Run {run} has no checkpoint yet",
        found=f"{backend.url}#{run}",
        remedy="`fmscale train` saves one every checkpoint.every steps, at a stop and at the end.",
    )


def run_framing(backend: Backend, meta: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """BOS and EOS of a run: those of its first dataset, if all its datasets have documents of this tokenizer. Else, as
    where a template has rendered chats, those of the imported model that it began with, or the defaults of `framing`.
    """
    sources = section(meta, "data", DataConfig).sources if "data" in meta["config"] else ()
    framed = [_framed(backend, source.dataset, tokenizer) for source in sources]
    if "eos" in meta and (not framed or None in framed):
        return meta.get("bos"), meta["eos"]
    return next(filter(None, framed), (None, tokenizer.eos_id))


def framing(backend: Backend, dataset: str, tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """BOS and EOS of a dataset's documents. Without this data in the store: no BOS, and the tokenizer's EOS, which are
    the defaults of an ingest.
    """
    return _framed(backend, dataset, tokenizer) or (None, tokenizer.eos_id)


def _framed(backend: Backend, dataset: str, tokenizer: Tokenizer) -> tuple[int | None, int | None] | None:
    try:
        commits = open_dataset(backend, dataset).commits()
    except DataError:
        commits = []
    known = ((one.bos, one.eos) for one in reversed(commits) if one.tokenizer == tokenizer.digest and one.dtype)
    return next(known, None)
