"""Sources of a run: datasets → views → sources with weights, and their record in the run's order log."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fmscale.config import RenderedSpec, SourceConfig
from fmscale.data.order.mixture import WEIGHT_ONE, integer_weights
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.plan.plan import Plan, Ranges, Source
from fmscale.data.views.placement import merged
from fmscale.data.views.token_view import TokenView, make_view
from fmscale.data.views.view import WINDOW, View
from fmscale.errors import ConfigError, Conflict, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.digest import metadata_digest
from fmscale.store.log.log import RUN_KINDS, Log

if TYPE_CHECKING:
    from fmscale.data.reading.sample_sources import SampleSources

logger = logging.getLogger(__name__)


def make_sources(
    backend: Backend,
    configs: Sequence[SourceConfig],
    *,
    sequence_length: int,
    seed: int,
    window: int = WINDOW,
    spec: object | None = None,
    sample_tokens: int | None = None,
    datasets: dict[str, Dataset] | None = None,
) -> list[Source]:
    """Views of the datasets with integer weights. `spec` holds for datasets of records whose source has none; a spec of
    a source holds for rows of tokens too. `sample_tokens` is the length of the longest sample in flat forwards, None
    for rows that are not packed so. `datasets` receives the opened datasets, by name.

    Raises DataError for a dataset, split or commit that does not exist, ConfigError if tokenizers differ, or for
    records without a spec or without `sample_tokens`.
    """
    datasets = {} if datasets is None else datasets
    for config in configs:
        if config.dataset not in datasets:
            datasets[config.dataset] = open_dataset(backend, config.dataset)
    commits = {name: dataset.commits() for name, dataset in datasets.items()}
    tokenizers = {name: last[-1].tokenizer for name, last in commits.items() if last and last[-1].tokenizer}
    if len(set(tokenizers.values())) > 1:
        raise ConfigError(
            "the datasets of a mixture must have one tokenizer",
            found=tokenizers,
            remedy="Ingest them with the same tokenizer (`--tokenizer` takes a dataset's by default).",
        )
    sources = []
    weights = integer_weights([config.weight for config in configs])
    for place, (config, weight) in enumerate(zip(configs, weights, strict=True)):
        records = bool(commits[config.dataset]) and commits[config.dataset][-1].kind == "records"
        chosen = config.spec or (spec if records else None)
        if records and "render" in commits[config.dataset][-1].body["extra"] and config.spec is None:
            # `data.spec` of a run that also reads texts does not fit.
            chosen = spec if getattr(spec, "kind", None) == RenderedSpec.kind else RenderedSpec()
        text = ""
        if chosen is not None or records or sample_tokens:
            text = _spec_text(backend, config.dataset, chosen, records, sample_tokens, list(tokenizers.values()))
        common: dict[str, Any] = {
            "split": config.split,
            "commits": config.commits,
            "masks": config.masks,
            "window": window,
            "spec": text,
            "live": commits[config.dataset],
        }
        dataset = datasets[config.dataset]
        view: View
        if records:
            from fmscale.data.views.record_view import make_record_view

            view = make_record_view(dataset, **common)
        else:
            view = make_view(dataset, sequence_length=sequence_length, **common)
        own = int(metadata_digest(f"{seed}/{place}".encode())[:16], 16) if config.seed is None else config.seed
        sources.append(Source(view=view, weight=weight, seed=own))
    return sources


def _spec_text(
    backend: Backend,
    dataset: str,
    config: object | None,
    records: bool,
    sample_tokens: int | None,
    tokenizers: Sequence[str],
) -> str:
    """JSON of the spec of a source."""
    # Specs bring tokenizers and YAML with them: rows of tokens are there sooner without.
    from fmscale.data.samples.rows import RowSamples
    from fmscale.data.samples.specs import make_spec, spec_text

    if config is None and not records:
        return spec_text(RowSamples())
    if config is None:
        raise ConfigError(
            f"dataset {dataset} holds records, and no spec says what a sample is",
            found="spec: null",
            remedy="Give data.spec, or the source a spec, such as {kind: text, field: text}; messages become tokens by "
            "`fmscale dataset render`.",
        )
    if sample_tokens is None:
        raise ConfigError(
            f"the samples of dataset {dataset} have lengths of their own, and no forward has a length",
            found="batch.forward_tokens: null",
            remedy="Give batch.forward_tokens, a multiple of 64, such as 8192.",
        )
    return spec_text(make_spec(config, backend, limit=sample_tokens, tokenizers=tokenizers))


def excluded_rows(sources: Sequence[Source], opened: "SampleSources", sample_tokens: int) -> tuple[Ranges, ...]:
    """Ranges of rows of each source that are left out: empty samples, and samples too long where the spec drops them.

    Raises DataError where the spec refuses samples that are too long.
    """
    out = []
    for source in sources:
        found = opened.open(source)
        rows = found.sizes.outside(sample_tokens)
        lengths = found.sizes.take(rows)
        long = rows[lengths > sample_tokens]
        if len(long) and found.spec.too_long == "refuse":
            raise DataError(
                f"{len(long)} of the {source.view.units.N} samples of {source.label} are too long",
                found=f"row {int(long[0])} has {int(lengths.max())} tokens, the limit is {sample_tokens}",
                remedy="Raise batch.forward_tokens or model.max_seq_len, or give the spec too_long: cut or drop.",
            )
        if len(rows) == source.view.units.N:
            raise DataError(
                f"no record of {source.label} becomes a sample",
                found=f"{len(rows) - len(long)} are empty or bad, {len(long)} longer than {sample_tokens} tokens",
                remedy=f"`fmscale dataset derive STORE/{source.view.dataset} --column size --config CONFIG` names the "
                f"bad and the reasons. The spec reads {', '.join(found.spec.columns)}.",
            )
        if len(rows):
            logger.warning(
                "%s: %d of %d samples are left out, %d of them empty or bad and %d longer than %d tokens",
                *(source.label, len(rows), source.view.units.N, len(rows) - len(long), len(long), sample_tokens),
            )
        out.append(tuple(merged([(row, row + 1) for row in rows.tolist()])))
    return tuple(out) if any(out) else ()


def open_order(
    backend: Backend,
    run: str,
    sources: Sequence[Source],
    configs: Sequence[SourceConfig],
    *,
    lease: int = 0,
    excluded: Callable[[], tuple[Ranges, ...]] = tuple,
) -> OrderLog:
    """The order log of a run. A log without a stage starts with `sources`, made of `configs`: one rank records this
    stage, and all ranks use the record. `lease` is the number of the run's lease, 0 for a run without a lease;
    `excluded` gives the rows that a first stage leaves out.

    Raises ConfigError if the run's last stage has other sources (see `require_recorded`).
    """
    order_log = OrderLog(Log(backend, f"runs/{run}", RUN_KINDS), lease=lease)
    try:
        plan = order_log.plan if order_log.begun else order_log.start(sources, excluded())
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
            "stage: `fmscale run stage CONFIG`.",
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
    }
    if isinstance(view, TokenView):
        values["data.sequence_length + 1"] = view.sequence_length
    if view.spec:
        values[f"{at}.spec"] = view.spec
    return values if config.commits is None else {**values, f"{at}.commits": list(view.commits)}
