"""The training samples of a run: sources, loader, tokenizer, and the limits that they set for a config."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fmscale.config import BatchShape, Config, ModelConfig, SourceConfig
from fmscale.config.spec import TextSpec
from fmscale.data.batch import fillers
from fmscale.data.flat_loader import FlatLoader
from fmscale.data.loader import Loader
from fmscale.data.open import open_flat_loader, open_loader
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.flat import FlatShare
from fmscale.data.plan.plan import Plan, Source, Stage
from fmscale.data.reading.arena import LittleMemory
from fmscale.data.reading.readers import Readers
from fmscale.data.reading.sample_sources import SampleSources
from fmscale.data.sample_loader import SampleLoader
from fmscale.data.samples.specs import text_tokenizer
from fmscale.data.sources import excluded_rows, make_sources
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.data.views.view import View
from fmscale.errors import ConfigError, DataError
from fmscale.objectives.protocol import SampleBatch
from fmscale.runtime.axes import Axis
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.tiers.fetch import Fetcher
from fmscale.store.tiers.tier import Tier

PASSED_ON = "sources", "seed", "window", "memory_bytes", "cache_dir", "cache_bytes", "on_corrupt", "quarantine_share"
"""Keys of `data:` that are arguments of a loader too."""
LEFT_OUT = 0.02
"""Share of a source's tokens that rows may leave out without a warning."""


def open_training(
    config: Config,
    backend: Backend,
    world: World,
    dp: Axis,
    batch: BatchShape,
    *,
    lease: int,
    tiers: Sequence[Tier] = (),
) -> SampleLoader[Any]:
    """The loader of the run's samples, shared out along `dp`; its order is in the run's log, written under `lease`."""
    data = config.data
    options: dict[str, Any] = {
        **{name: getattr(data, name) for name in PASSED_ON},
        # One token more than the model reads: the label of the last token.
        "sequence_length": data.sequence_length + 1,
        "batch": batch.global_batch,
        "run": config.train.run,
        "lease": lease,
        "dp_rank": dp.rank,
        "dp_size": dp.size,
        "nodes": -(-world.world_size // world.local_size),
        "tiers": tiers,
        "document_ids": config.train.record_delivery,
    }
    if batch.forward_tokens is not None:
        options |= {"forward_tokens": batch.forward_tokens, "sample_tokens": longest_sample(config), "spec": data.spec}
        return open_flat_loader(backend, **options)
    return open_loader(backend, micro_batch=batch.micro_batch, **options)


def training_sources(
    config: Config, backend: Backend, sources: Sequence[SourceConfig], datasets: dict[str, Dataset] | None = None
) -> list[Source]:
    """The sources as the loader makes them; `datasets` receives the opened datasets, by name."""
    data = config.data
    return make_sources(
        backend,
        sources,
        sequence_length=data.sequence_length + 1,
        seed=data.seed,
        window=data.window,
        spec=data.spec,
        sample_tokens=longest_sample(config),
        datasets=datasets,
    )


def tell_left_out(view: View) -> str:
    """A warning if rows leave out more than LEFT_OUT of the view's tokens; else empty."""
    if view.left_out <= LEFT_OUT * view.kept:
        return ""
    return (
        f"rows leave out {view.left_out:,} of the {view.kept:,} tokens of dataset {view.dataset}, "
        f"{view.left_out / view.kept:.1%}: the ends of its {len(view.commits)} commits that are below a row of "
        f"{view.row_length:,}. Take a shorter data.sequence_length, or ingest the texts in fewer commits."
    )


def longest_sample(config: Config) -> int | None:
    """Most tokens of a sample in a flat forward, which the model must be able to take; None for rows."""
    tokens, longest = config.batch.forward_tokens, getattr(config.model, "max_seq_len", None)
    return tokens if tokens is None or longest is None else min(tokens, longest)


def empty_batch(config: Config, loader: SampleLoader[Any], batch: BatchShape) -> SampleBatch:
    """A forward of the largest size without a sample."""
    if isinstance(loader, FlatLoader):
        assert batch.forward_tokens is not None, "the loader was opened with it"
        return loader.filler(batch.forward_tokens)
    return fillers(batch.micro_batch, config.data.sequence_length)


@contextmanager
def memory_at_its_place(config: Config) -> Iterator[None]:
    """Name the place of `data.memory_bytes` in the loader's error about too little memory."""
    try:
        yield
    except LittleMemory as error:
        raise ConfigError(
            f"{config.place('data.memory_bytes')} is too little: {error.cause}",
            found=config.data.memory_bytes,
            remedy=error.remedy.replace("memory_bytes", "data.memory_bytes") or "Raise data.memory_bytes.",
        ) from error


@contextmanager
def memory_of_the_machine(config: Config) -> Iterator[None]:
    """Name `data.memory_bytes` where the machine refuses the memory of a loader."""
    try:
        yield
    except MemoryError as error:
        raise ConfigError(
            f"{config.place('data.memory_bytes')} is more than this machine can give",
            found=config.data.memory_bytes,
            remedy="Take less.",
        ) from error


def check_memory(config: Config, backend: Backend, batch: BatchShape, sources: Sequence[Source]) -> int:
    """Raise ConfigError if the first step of rank 0 does not fit into `data.memory_bytes`, and DataError if flat
    forwards cannot take the samples. Reads sizes alone. Returns the bytes for forwards that are made ahead.
    """
    schedule = BatchSchedule([(0, batch.global_batch)])
    with memory_at_its_place(config), memory_of_the_machine(config):
        if batch.forward_tokens is not None:
            opened = SampleSources(Fetcher(backend))
            excluded = excluded_rows(sources, opened, longest_sample(config) or batch.forward_tokens)
            share = FlatShare(0, (batch.dp_size,), batch.forward_tokens)
            plan = Plan([Stage(from_k=0, sources=tuple(sources), excluded=excluded)])
            flat = FlatLoader(plan, schedule, opened, share, memory_bytes=config.data.memory_bytes)
            flat.check_memory()
            return flat.decoded_bytes
        Loader(
            Plan([Stage(from_k=0, sources=tuple(sources))]),
            schedule,
            Readers(Fetcher(backend)),
            dp_size=batch.dp_size,
            micro_batch=batch.micro_batch,
            memory_bytes=config.data.memory_bytes,
        ).check_memory()
    return 0


def tokenizer_of(config: Config, backend: Backend) -> Tokenizer | None:
    """The tokenizer of the run's token datasets, or of its texts, from the store; None for samples without tokens.

    Raises DataError for a dataset without a commit.
    """
    specs = []
    for source in config.data.sources:
        commits = open_dataset(backend, source.dataset).commits()
        if not commits:
            remedy = "Ingest into it first: `fmscale ingest PATH... --dataset NAME`."
            raise DataError(f"dataset {source.dataset} has no tokens to train on", remedy=remedy)
        if (digest := commits[-1].tokenizer) is not None:
            return from_json(load_tokenizer(backend, digest), f"tokenizer {digest}")
        specs.append(source.spec or config.data.spec)
    for spec in specs:
        if isinstance(spec, TextSpec):
            return text_tokenizer(spec, backend, ())
    return None


def chat_facts(config: Config, backend: Backend) -> dict[str, Any]:
    """The run's chat `template`, by its digest, with `bos` and the `eos` that ends an answer; empty without a rendered
    dataset. Raises ConfigError for several templates: a model that is told two forms does not know which to write.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in config.data.sources:
        commits = open_dataset(backend, source.dataset).commits()
        if commits and (notes := commits[-1].body["extra"].get("render")):
            found[source.dataset] = {"template": notes["template"], "bos": commits[-1].bos, "eos": commits[-1].eos}
    facts = list(found.values())
    if any(one != facts[0] for one in facts):
        raise ConfigError(
            "the rendered datasets of a mixture must have one chat template",
            found=found,
            remedy="Render them --with the same run, or with the same --template.",
        )
    return facts[0] if facts else {}


def vocabulary(config: Config, tokenizer: Tokenizer | None) -> int | None:
    """Size of the model's vocabulary; None for a model without one. Raises ConfigError if it is smaller than the
    tokenizer's: a token id beyond the embedding would cause an opaque CUDA error in the middle of a step.
    """
    size: int | None = getattr(config.model, "vocab_size", None)
    needed = None if tokenizer is None else tokenizer.vocab_size
    place = config.place("model.vocab_size")
    if size is None and needed is None and type(config.model) is ModelConfig:
        remedy = "Give it, or take a dataset or a spec with a tokenizer."
        raise ConfigError(f"{place} is needed: no tokenizer says it for the run's samples", remedy=remedy)
    if size is not None and needed is not None and size < needed:
        raise ConfigError(
            f"{place} is smaller than the vocabulary of the tokenizer",
            found=f"{size}, the tokenizer of the run's data has {needed}",
            remedy=f"Take model.vocab_size: {needed} or more, or null for the tokenizer's.",
        )
    return needed if size is None else size


def check_length(config: Config) -> None:
    """Raise ConfigError if rows are longer than the model's longest sequence."""
    longest: int | None = getattr(config.model, "max_seq_len", None)
    if longest is not None and config.data.sequence_length > longest and config.batch.forward_tokens is None:
        raise ConfigError(
            f"{config.place('data.sequence_length')} is longer than the model's max_seq_len",
            found=f"{config.data.sequence_length} > {longest}",
            remedy="Shorten the rows, or raise model.max_seq_len.",
        )


def passes(samples: int, sources: Sequence[Source]) -> list[float]:
    """Number of times that a run of `samples` rows reads each source."""
    weights = [source.weight for source in sources]
    return [samples * source.weight / sum(weights) / sum(source.view.rows) for source in sources]
