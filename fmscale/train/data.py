"""The loaders of a run: its training samples, and the held-out rows that it is evaluated on."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fmscale.config import Config
from fmscale.config.train import EvaluationSet
from fmscale.data.batch import Microbatch
from fmscale.data.loader import Loader
from fmscale.data.open import open_loader
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError, DataError
from fmscale.objectives.inputs import Inputs
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.train.inputs import to_inputs


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How rows of a step are shared."""

    global_batch: int
    """Rows of a step over all ranks."""
    micro_batch: int
    """Rows of a forward."""


def open_training(config: Config, backend: Backend, world: World, shares: Shares, *, lease: int) -> Loader:
    """The loader of the run's samples; its order is in the run's log, written under lease `lease`."""
    data = config.data
    return open_loader(
        backend,
        # One more than the model reads: the label of the last.
        sequence_length=data.sequence_length + 1,
        batch=shares.global_batch,
        sources=data.sources,
        seed=data.seed,
        window=data.window,
        run=config.train.run,
        lease=lease,
        dp_rank=world.dp_rank,
        dp_size=world.dp_size,
        micro_batch=shares.micro_batch,
        memory_bytes=data.memory_bytes,
        cache_dir=data.cache_dir,
        cache_bytes=data.cache_bytes,
        nodes=-(-world.world_size // world.local_size),
        on_corrupt=data.on_corrupt,
        document_ids=config.train.record_delivery,
    )


def tokenizer_of(config: Config, backend: Backend) -> Tokenizer:
    """The tokenizer of the run's datasets, from the store. Raises DataError where there is none."""
    dataset = open_dataset(backend, config.data.sources[0].dataset)
    commits = dataset.commits()
    digest = commits[-1].tokenizer if commits else None
    if digest is None:
        raise DataError(
            f"dataset {dataset.name} has no tokens to train on",
            remedy="Ingest into it first: `fmscale ingest PATH... --dataset NAME`.",
        )
    return from_json(load_tokenizer(backend, digest), f"tokenizer {digest}")


def vocabulary(config: Config, tokenizer: Tokenizer) -> int:
    """Size of the model's vocabulary. Raises ConfigError if it is smaller than the tokenizer's: a token id
    beyond the embedding is an opaque CUDA error in the middle of a step otherwise.
    """
    wanted = config.model.vocab_size
    if wanted is None:
        return tokenizer.vocab_size
    if wanted < tokenizer.vocab_size:
        raise ConfigError(
            f"{config.place('model.vocab_size')} is smaller than the vocabulary of the tokenizer",
            found=f"{wanted}, the tokenizer of dataset {config.data.sources[0].dataset} has {tokenizer.vocab_size}",
            remedy=f"Take model.vocab_size: {tokenizer.vocab_size} or more, or null for the tokenizer's.",
        )
    return wanted


def check_length(config: Config) -> None:
    """Raise ConfigError if rows are longer than the model's longest sequence."""
    if config.data.sequence_length > config.model.max_seq_len:
        raise ConfigError(
            f"{config.place('data.sequence_length')} is longer than the model's max_seq_len",
            found=f"{config.data.sequence_length} > {config.model.max_seq_len}",
            remedy="Shorten the rows, or raise model.max_seq_len.",
        )


def heldout_rows(
    backend: Backend,
    chosen: EvaluationSet,
    world: World,
    *,
    sequence_length: int,
    micro_batch: int,
    device: str,
) -> Iterator[Inputs]:
    """This rank's microbatches of an evaluation set: the same rows at any number of ranks; what exceeds
    `chosen.rows`, or the split, weighs nothing. Every rank gets the same number of microbatches.
    """
    loader = open_loader(
        backend,
        sequence_length=sequence_length + 1,
        batch=micro_batch * world.dp_size,
        dataset=chosen.dataset,
        split=chosen.split,
        dp_rank=world.dp_rank,
        dp_size=world.dp_size,
        micro_batch=micro_batch,
        read_threads=1,
    )
    with loader:
        rows = min(chosen.rows, sum(loader.plan.sources[0].view.rows))
        for _ in range(-(-rows // (micro_batch * world.dp_size))):
            yield _beyond_weighs_nothing(next(loader), rows, device)


def _beyond_weighs_nothing(batch: Microbatch, rows: int, device: str) -> Inputs:
    made = to_inputs(batch, device)
    inside = torch.zeros(batch.tokens.shape[0], dtype=torch.float32)
    inside[: batch.rows] = torch.from_numpy((batch.k < rows).astype("float32"))
    made.weights_BT.mul_(inside.to(device)[:, None])
    return made
