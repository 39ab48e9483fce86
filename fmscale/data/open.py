"""Opening of loaders: datasets → views → plan → loader."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmscale.config import SourceConfig
from fmscale.data.loader import Loader
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan, Source, Stage
from fmscale.data.reading.readers import Readers
from fmscale.data.sample_loader import MEMORY_BYTES, QUARANTINE_SHARE
from fmscale.data.sources import excluded_rows, make_sources, open_order
from fmscale.data.views.token_view import TokenView
from fmscale.data.views.view import WINDOW, View
from fmscale.errors import ConfigError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.open import open_store
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.fetch import Fetcher
from fmscale.store.tiers.tier import Tier

if TYPE_CHECKING:
    from fmscale.data.flat_loader import FlatLoader

REGION_BYTES = 4 * 2**20
"""Bytes of a request if a node's cache has room for all data; otherwise a request fetches a unit, 320 KiB."""


def open_loader(
    store: str | Backend,
    *,
    sequence_length: int,
    batch: int | Sequence[tuple[int, int]],
    dataset: str | None = None,
    sources: Sequence[SourceConfig] = (),
    split: str = "train",
    seed: int = 0,
    window: int = WINDOW,
    run: str | None = None,
    lease: int = 0,
    dp_rank: int = 0,
    dp_size: int = 1,
    micro_batch: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    cache_dir: Path | str | None = None,
    cache_bytes: int = 100 * 2**30,
    nodes: int = 1,
    tiers: Sequence[Tier] = (),
    region_bytes: int = REGION_BYTES,
    on_corrupt: str = "quarantine",
    quarantine_share: float = QUARANTINE_SHARE,
    document_ids: bool = False,
    read_threads: int | None = None,
    prefetch: bool = True,
) -> Loader:
    """A loader over one dataset or a weighted mixture.

    Args:
        store: URL or backend.
        sequence_length: tokens of a row as delivered (one more than the model's context, for the shift).
        batch: rows of a step over all ranks, or a ramp [(first step, rows), …].
        dataset: name of the dataset; or `sources` for a mixture.
        sources: datasets and weights.
        split: split of `dataset`.
        seed: seed of the order.
        window: units that are shuffled together.
        run: name of a run, which keeps its order log in the store (stages, bans, quarantines); None: the order
            depends on the arguments alone, and a chunk that cannot be served stops the loader.
        lease: number of the run's lease, under which the order log is written.
        dp_rank: place among the data-parallel ranks.
        dp_size: number of data-parallel ranks.
        micro_batch: rows of one forward; None: the rank's whole part of a step.
        memory_bytes: bytes of host memory for units.
        cache_dir: node-local folder shared by the node's ranks; for remote stores.
        cache_bytes: limit of that folder.
        nodes: number of nodes over all ranks. A single node whose cache has room for all data, or nodes with tiers
            whose caches together have this room, fetch the data by whole regions, in few large requests.
        tiers: sources that are asked for chunks between the node cache and the store, in this order.
        region_bytes: bytes of a region, the part of an object that tiers leave to one node's cache; the same on all
            nodes.
        on_corrupt: `quarantine` (with a run) or `stop`.
        quarantine_share: share of a source's rows that a run may quarantine before it stops.
        document_ids: deliver stable document ids too.
        read_threads: concurrent reads; None: by the kind of store.
        prefetch: read ahead; False reads each step on request, for measurements only.

    Raises DataError, ConfigError or StoreError with the remedy.
    """
    backend = open_store(store) if isinstance(store, str) else store
    configs = source_configs(dataset, sources, split, on_corrupt)
    datasets: dict[str, Dataset] = {}
    made = make_sources(backend, configs, sequence_length=sequence_length, seed=seed, window=window, datasets=datasets)
    order_log = open_order(backend, run, made, configs, lease=lease) if run is not None else None
    fetcher = open_fetcher(backend, made, datasets, cache_dir, cache_bytes, nodes, tiers, region_bytes)
    return Loader(
        order_log.plan if order_log else Plan([Stage(from_k=0, sources=tuple(made))]),
        BatchSchedule([(0, batch)] if isinstance(batch, int) else batch),
        Readers(fetcher, document_ids=document_ids, datasets=datasets),
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch=micro_batch,
        memory_bytes=memory_bytes,
        read_threads=read_threads,
        prefetch=prefetch,
        order_log=order_log,
        quarantine_share=quarantine_share if on_corrupt == "quarantine" else None,
    )


def open_flat_loader(
    store: str | Backend,
    *,
    forward_tokens: int,
    sample_tokens: int | None = None,
    batch: int | Sequence[tuple[int, int]],
    dataset: str | None = None,
    sources: Sequence[SourceConfig] = (),
    spec: object | None = None,
    sequence_length: int = 2049,
    split: str = "train",
    seed: int = 0,
    window: int = WINDOW,
    run: str | None = None,
    lease: int = 0,
    dp_rank: int = 0,
    dp_size: int = 1,
    memory_bytes: int = MEMORY_BYTES,
    cache_dir: Path | str | None = None,
    cache_bytes: int = 100 * 2**30,
    nodes: int = 1,
    tiers: Sequence[Tier] = (),
    region_bytes: int = REGION_BYTES,
    on_corrupt: str = "quarantine",
    quarantine_share: float = QUARANTINE_SHARE,
    document_ids: bool = False,
    threads: int | None = None,
) -> "FlatLoader":
    """A loader of flat forwards: samples that specs make of records, or of rows of tokens.

    Args, beside those of `open_loader`:
        forward_tokens: most tokens of a forward, a multiple of 64.
        sample_tokens: most tokens of a sample; None: those of a forward.
        batch: samples of a step over all ranks, or a ramp.
        spec: config of the spec that makes samples of records (`fmscale.config.spec`, or a class of your own).
        sequence_length: tokens of a row of a token dataset, which becomes a sample of one token less.
        nodes: number of nodes over all ranks, in whose memory units are shared out.
        threads: threads that read and decode; None: by the cores and the kind of store.

    Raises DataError, ConfigError or StoreError with the remedy.
    """
    # Specs bring tokenizers and YAML with them: rows of tokens are there sooner without.
    from fmscale.data.flat_loader import FlatLoader
    from fmscale.data.plan.flat import FlatShare
    from fmscale.data.reading.sample_sources import SampleSources

    backend = open_store(store) if isinstance(store, str) else store
    configs = source_configs(dataset, sources, split, on_corrupt)
    datasets: dict[str, Dataset] = {}
    longest = min(sample_tokens or forward_tokens, forward_tokens)
    made = make_sources(
        backend,
        configs,
        sequence_length=sequence_length,
        seed=seed,
        window=window,
        spec=spec,
        sample_tokens=longest,
        datasets=datasets,
    )
    fetcher = open_fetcher(backend, made, datasets, cache_dir, cache_bytes, nodes, tiers, region_bytes)
    opened = SampleSources(fetcher, document_ids=document_ids, datasets=datasets)
    excluded = partial(excluded_rows, made, opened, longest)
    order_log = open_order(backend, run, made, configs, lease=lease, excluded=excluded) if run is not None else None
    return FlatLoader(
        order_log.plan if order_log else Plan([Stage(from_k=0, sources=tuple(made), excluded=excluded())]),
        BatchSchedule([(0, batch)] if isinstance(batch, int) else batch),
        opened,
        FlatShare(dp_rank, ranks_of_nodes(dp_size, nodes), forward_tokens),
        memory_bytes=memory_bytes,
        threads=threads,
        order_log=order_log,
        quarantine_share=quarantine_share if on_corrupt == "quarantine" else None,
    )


def source_configs(
    dataset: str | None, sources: Sequence[SourceConfig], split: str, on_corrupt: str
) -> list[SourceConfig]:
    """The sources of a loader's arguments. Raises ConfigError for arguments that contradict each other."""
    if (dataset is None) == (not sources):
        raise ConfigError(
            "give either dataset or sources",
            found=(dataset, list(sources)),
            remedy="`dataset` for one, `sources` for a mixture.",
        )
    if on_corrupt not in ("quarantine", "stop"):
        raise ConfigError(
            "on_corrupt is quarantine or stop",
            found=on_corrupt,
            remedy="quarantine replaces rows that no copy can serve, stop ends the run.",
        )
    return list(sources) or [SourceConfig(dataset=str(dataset), split=split)]


def open_fetcher(
    backend: Backend,
    sources: Sequence[Source],
    datasets: Mapping[str, Dataset],
    cache_dir: Path | str | None,
    cache_bytes: int,
    nodes: int,
    tiers: Sequence[Tier],
    region_bytes: int,
) -> Fetcher:
    """The verified reads of a loader, whose arguments `open_loader` explains."""
    cache = NodeCache(Path(cache_dir), cache_bytes) if cache_dir is not None else None
    data_bytes = sum(stored_bytes(source.view, datasets[source.view.dataset]) for source in sources)
    # With tiers the nodes share the data, and the fullest node has about a tenth more than the mean.
    room = nodes * cache_bytes / 1.1 if tiers else cache_bytes / 2 if nodes == 1 else 0
    roomy = data_bytes < room
    return Fetcher(backend, cache, tiers, region_bytes=region_bytes if tiers or roomy else 0, whole_regions=roomy)


def stored_bytes(view: View, dataset: Dataset) -> int:
    """Bytes of a view's tokens, or of the segments with its records."""
    if isinstance(view, TokenView):
        return view.kept * np.dtype(view.dtype).itemsize
    commits = dataset.named(view.commits)
    return sum(commit.totals[view.split].bytes for commit in commits if view.split in commit.totals)


def ranks_of_nodes(dp_size: int, nodes: int) -> tuple[int, ...]:
    """Ranks of each node, where all nodes but the last have the same number."""
    each = -(-dp_size // nodes)
    return tuple(min(each, dp_size - first) for first in range(0, dp_size, each))
