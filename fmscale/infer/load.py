"""Load a model and its tokenizer from a checkpoint in a store."""

from dataclasses import dataclass

import torch

from fmscale.checkpoint.catalog import list_checkpoints, parse_address
from fmscale.checkpoint.checkpoint import Checkpoint, open_in
from fmscale.checkpoint.read.meta import decoder_section, section
from fmscale.config import DataConfig, ModelConfig
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError, DataError
from fmscale.models import Decoder, build, load_weights
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.log.runs import require_run
from fmscale.store.open import open_store

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """Model of a run at a checkpoint, with its tokenizer and data settings."""

    run: str
    """The run."""
    step: int
    """Optimizer steps of the checkpoint."""
    digest: str
    """Digest of the checkpoint's manifest, which names all its tensors."""
    backend: Backend
    """Store of the run."""
    model: Decoder
    """In eval mode, without gradients."""
    tokenizer: Tokenizer
    """The tokenizer of its training data."""
    bos: int | None
    """Token that begins a document, if the run's data has one."""
    eos: int | None
    """Token that ends a document, if the run's data has one."""
    dataset: str
    """The run's first dataset."""
    sequence_length: int
    """Tokens of a row in training. The model may accept longer rows, but was not trained on later positions."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with BOS first where documents begin with it."""
        ids = self.tokenizer.encode_batch([text])[0].tolist()
        return ids if self.bos is None else [self.bos, *ids]


def open_trained(address: str, *, device: str = "cpu", precision: str | None = None) -> TrainedModel:
    """The model at STORE_URL#RUN (its newest checkpoint) or STORE_URL#RUN@STEP, on `device`.

    `precision` is "fp32" or "bf16"; None takes fp32 on a CPU and bf16 elsewhere. Tensors are read one by one.

    Raises ConfigError for a missing run (with the nearest names), a run without a checkpoint, and a run with a
    smaller vocabulary than its tokenizer's; StoreError, CorruptData.
    """
    if precision not in (None, *TYPES):
        raise ConfigError("No such precision", found=precision, remedy=f"Take {' or '.join(TYPES)}.")
    url, run, which = parse_address(address)
    backend = open_store(url, read_only=True)
    checkpoint = _checkpoint(backend, run, which)
    meta = checkpoint.meta
    tokenizer = from_json(load_tokenizer(backend, meta["tokenizer"]), f"tokenizer {meta['tokenizer']}")
    vocab_size = int(meta["vocab_size"])
    if vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"The vocabulary of run {run} is smaller than its tokenizer's",
            found=f"{vocab_size}, the tokenizer has {tokenizer.vocab_size}",
            remedy="Train with model.vocab_size null or as large as the tokenizer's.",
        )
    dtype = TYPES[precision or ("fp32" if device == "cpu" else "bf16")]
    data = section(meta, "data", DataConfig)
    dataset = data.sources[0].dataset
    bos, eos = framing(backend, dataset, tokenizer)
    return TrainedModel(
        run=run,
        step=checkpoint.step,
        digest=checkpoint.found.body["manifest"]["digest"],
        backend=backend,
        model=_model(checkpoint, decoder_section(meta, "generation and evaluation"), vocab_size, device, dtype),
        tokenizer=tokenizer,
        bos=bos,
        eos=eos,
        dataset=dataset,
        sequence_length=data.sequence_length,
    )


def _model(checkpoint: Checkpoint, config: ModelConfig, vocab_size: int, device: str, dtype: torch.dtype) -> Decoder:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build(config, vocab_size=vocab_size)
    finally:
        torch.set_default_dtype(before)
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.manifest.tensors if tensor.state == "weight"}
    load_weights(model, checkpoint.tensor, shapes)
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


def framing(backend: Backend, dataset: str, tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """BOS and EOS of the run's data. Without this data in the store: no BOS, and the tokenizer's EOS, which are the
    defaults of an ingest.
    """
    try:
        commits = open_dataset(backend, dataset).commits()
    except DataError:
        commits = []
    known = ((commit.bos, commit.eos) for commit in reversed(commits) if commit.tokenizer == tokenizer.digest)
    return next(known, (None, tokenizer.eos_id))
