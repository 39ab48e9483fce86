"""Opening of loaders: datasets → views → plan → loader."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmscale.config import SourceConfig
from fmscale.data.loader import MEMORY_BYTES, Loader
from fmscale.data.order.mixture import WEIGHT_ONE, integer_weights
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.plan.plan import Plan, Source, Stage
from fmscale.data.reading.readers import Readers
from fmscale.data.views.view import WINDOW, make_view
from fmscale.errors import ConfigError, Conflict
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.digest import metadata_digest
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.fetch import Fetcher
from fmscale.store.tiers.tier import Tier

REGION_BYTES = 4 * 2**20
"""Bytes of a request if a node's cache has room for all data; otherwise a request fetches a unit, 320 KiB."""


def make_sources(
    backend: Backend,
    configs: Sequence[SourceConfig],
    *,
    sequence_length: int,
    seed: int,
    window: int = WINDOW,
    datasets: dict[str, Dataset] | None = None,
) -> list[Source]:
    """Views of the datasets with integer weights. `datasets` receives the opened datasets, by name.

    Raises DataError for a dataset, split or commit that does not exist, ConfigError if tokenizers differ.
    """
    sources = []
    datasets = {} if datasets is None else datasets
    weights = integer_weights([config.weight for config in configs])
    for place, (config, weight) in enumerate(zip(configs, weights, strict=True)):
        if config.dataset not in datasets:
            datasets[config.dataset] = open_dataset(backend, config.dataset)
        view = make_view(
            datasets[config.dataset],
            sequence_length=sequence_length,
            split=config.split,
            commits=config.commits,
            masks=config.masks,
            window=window,
        )
        own = int(metadata_digest(f"{seed}/{place}".encode())[:16], 16) if config.seed is None else config.seed
        sources.append(Source(view=view, weight=weight, seed=own))
    tokenizers = {source.view.tokenizer for source in sources}
    if len(tokenizers) > 1:
        raise ConfigError(
            "the datasets of a mixture must have one tokenizer",
            found={source.label: source.view.tokenizer for source in sources},
            remedy="Ingest them with the same tokenizer (`--tokenizer` takes a dataset's by default).",
        )
    return sources


def open_order(
    backend: Backend, run: str, sources: Sequence[Source], configs: Sequence[SourceConfig], *, lease: int = 0
) -> OrderLog:
    """The order log of a run. A log without a stage starts with `sources`, made of `configs`: one rank records this
    stage, and all ranks use the record. `lease` is the number of the run's lease, 0 for a run without a lease.

    Raises ConfigError if the run's last stage has other sources (see `require_recorded`).
    """
    order_log = OrderLog(Log(backend, f"runs/{run}", RUN_KINDS), lease=lease)
    try:
        plan = order_log.start(sources)
    except Conflict:
        plan = order_log.refresh()
    require_recorded(run, plan, sources, configs)
    return order_log


def require_recorded(run: str, plan: Plan, sources: Sequence[Source], configs: Sequence[SourceConfig]) -> None:
    """Raise ConfigError with the differences if the last stage of a run's plan differs from `sources`, made of
    `configs`. Later commits make no difference if a config names no commits.
    """
    recorded = plan.stages[-1].sources
    differ: dict[str, tuple[object, object]] = {}
    if len(recorded) != len(sources):
        names = [[source.view.dataset for source in side] for side in (recorded, sources)]
        differ["data.sources"] = names[0], names[1]
    else:
        for place, (old, new, config) in enumerate(zip(recorded, sources, configs, strict=True)):
            was, now = _outline(old, config, place), _outline(new, config, place)
            differ |= {key: (was[key], now[key]) for key in was if was[key] != now[key]}
    if differ:
        raise ConfigError(
            f"run {run} was recorded with other data",
            found="; ".join(f"{key}: recorded {old}, asked for {new}" for key, (old, new) in differ.items()),
            remedy="Take the recorded values, or another train.run. What changes the data of a run under way is a "
            "stage: fmscale.data.plan.order_log.OrderLog.add_stage (docs/api.md).",
        )


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
        document_ids: deliver stable document ids too.
        read_threads: concurrent reads; None: by the kind of store.
        prefetch: read ahead; False reads each step on request, for measurements only.

    Raises DataError, ConfigError or StoreError with the remedy.
    """
    backend = open_store(store) if isinstance(store, str) else store
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
    configs = list(sources) or [SourceConfig(dataset=str(dataset), split=split)]
    datasets: dict[str, Dataset] = {}
    made = make_sources(backend, configs, sequence_length=sequence_length, seed=seed, window=window, datasets=datasets)
    order_log = open_order(backend, run, made, configs, lease=lease) if run is not None else None
    plan = order_log.plan if order_log else Plan([Stage(from_k=0, sources=tuple(made))])
    cache = NodeCache(Path(cache_dir), cache_bytes) if cache_dir is not None else None
    data_bytes = sum(sum(source.view.tokens) * np.dtype(source.view.dtype).itemsize for source in made)
    # With tiers the nodes share the data, and the fullest node has about a tenth more than the mean.
    room = nodes * cache_bytes / 1.1 if tiers else cache_bytes / 2 if nodes == 1 else 0
    roomy = data_bytes < room
    fetcher = Fetcher(backend, cache, tiers, region_bytes=region_bytes if tiers or roomy else 0, whole_regions=roomy)
    return Loader(
        plan,
        BatchSchedule([(0, batch)] if isinstance(batch, int) else batch),
        Readers(fetcher, document_ids=document_ids, datasets=datasets),
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch=micro_batch,
        memory_bytes=memory_bytes,
        read_threads=read_threads,
        prefetch=prefetch,
        order_log=order_log if on_corrupt == "quarantine" else None,
    )


def _outline(source: Source, config: SourceConfig, place: int) -> dict[str, object]:
    """Values of a source by config key; commits only if the config names them."""
    view, at = source.view, f"data.sources.{place}"
    values: dict[str, object] = {
        f"{at}.dataset": view.dataset,
        f"{at}.split": view.split,
        f"{at}.weight": f"{source.weight / WEIGHT_ONE:.6g} of the samples",
        f"{at}.seed" + (" (made from data.seed)" if config.seed is None else ""): source.seed,
        f"{at}.masks": list(view.masks),
        "data.window": view.window,
        "data.sequence_length + 1": view.sequence_length,
    }
    return values if config.commits is None else {**values, f"{at}.commits": list(view.commits)}
