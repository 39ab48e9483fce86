"""The training samples of a run: sources, loader, tokenizer, and the limits that they set for a config."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fmscale.config import BatchShape, Config
from fmscale.data.loader import Loader
from fmscale.data.open import open_loader
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan, Source, Stage
from fmscale.data.reading.arena import LittleMemory
from fmscale.data.reading.readers import Readers
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError, DataError
from fmscale.runtime.axes import Axis
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.tiers.fetch import Fetcher
from fmscale.store.tiers.tier import Tier


def open_training(
    config: Config,
    backend: Backend,
    world: World,
    dp: Axis,
    batch: BatchShape,
    *,
    lease: int,
    tiers: Sequence[Tier] = (),
) -> Loader:
    """The loader of the run's samples, shared out along `dp`; its order is in the run's log, written under `lease`."""
    data = config.data
    return open_loader(
        backend,
        # One token more than the model reads: the label of the last token.
        sequence_length=data.sequence_length + 1,
        batch=batch.global_batch,
        sources=data.sources,
        seed=data.seed,
        window=data.window,
        run=config.train.run,
        lease=lease,
        dp_rank=dp.rank,
        dp_size=dp.size,
        micro_batch=batch.micro_batch,
        memory_bytes=data.memory_bytes,
        cache_dir=data.cache_dir,
        cache_bytes=data.cache_bytes,
        nodes=-(-world.world_size // world.local_size),
        tiers=tiers,
        on_corrupt=data.on_corrupt,
        document_ids=config.train.record_delivery,
    )


@contextmanager
def memory_at_its_place(config: Config) -> Iterator[None]:
    """Name the place of `data.memory_bytes` in the loader's error about too little memory."""
    try:
        yield
    except LittleMemory as error:
        raise ConfigError(
            f"{config.place('data.memory_bytes')} is too little: {error.cause}", found=error.found, remedy=error.remedy
        ) from error


def check_memory(config: Config, backend: Backend, batch: BatchShape, sources: Sequence[Source]) -> None:
    """Raise ConfigError if the first step of rank 0 does not fit into `data.memory_bytes`. Reads no data."""
    with memory_at_its_place(config):
        Loader(
            Plan([Stage(from_k=0, sources=tuple(sources))]),
            BatchSchedule([(0, batch.global_batch)]),
            Readers(Fetcher(backend)),
            dp_size=batch.dp_size,
            micro_batch=batch.micro_batch,
            memory_bytes=config.data.memory_bytes,
        ).check_memory()


def tokenizer_of(config: Config, backend: Backend) -> Tokenizer:
    """The tokenizer of the run's datasets, from the store. Raises DataError for a dataset without tokens."""
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
    beyond the embedding would cause an opaque CUDA error in the middle of a step.
    """
    size: int | None = getattr(config.model, "vocab_size", None)
    if size is None:
        return tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise ConfigError(
            f"{config.place('model.vocab_size')} is smaller than the vocabulary of the tokenizer",
            found=f"{size}, the tokenizer of dataset {config.data.sources[0].dataset} has {tokenizer.vocab_size}",
            remedy=f"Take model.vocab_size: {tokenizer.vocab_size} or more, or null for the tokenizer's.",
        )
    return size


def check_length(config: Config) -> None:
    """Raise ConfigError if rows are longer than the model's longest sequence."""
    longest: int | None = getattr(config.model, "max_seq_len", None)
    if longest is not None and config.data.sequence_length > longest:
        raise ConfigError(
            f"{config.place('data.sequence_length')} is longer than the model's max_seq_len",
            found=f"{config.data.sequence_length} > {longest}",
            remedy="Shorten the rows, or raise model.max_seq_len.",
        )


def passes(samples: int, sources: Sequence[Source]) -> list[float]:
    """Number of times that a run of `samples` rows reads each source."""
    weights = [source.weight for source in sources]
    return [samples * source.weight / sum(weights) / sum(source.view.rows) for source in sources]
