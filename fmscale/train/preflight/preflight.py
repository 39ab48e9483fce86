"""All problems of a run before its start, found together; nothing is started or written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from fmscale.checkpoint.base import open_base
from fmscale.checkpoint.catalog import load_manifest, newest
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.manifest import CheckpointManifest
from fmscale.checkpoint.format.names import REFERENCE, run_log
from fmscale.checkpoint.read.compatibility import differences, refuse_other_model
from fmscale.config import Config, ModelConfig, SourceConfig, derive_batch, kind_of
from fmscale.config.checks import problems_of
from fmscale.config.model import InitModelConfig
from fmscale.data.open import stored_bytes
from fmscale.data.plan.order_log import order_changes, replay
from fmscale.data.plan.plan import Plan, Source
from fmscale.data.sources import require_recorded
from fmscale.data.views.token_view import TokenView
from fmscale.data.views.view import View
from fmscale.errors import AccessDenied, ConfigError, FmscaleError, ObjectNotFound, StoreError, StoreUnavailable
from fmscale.models.lora import count_parameters
from fmscale.objectives import make_objective
from fmscale.runtime.sinks.run_sinks import check_sinks
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.open import open_store
from fmscale.store.segments.tokens_writer import TOKEN_CHUNK_BYTES
from fmscale.train.data import (
    chat_facts,
    check_length,
    check_memory,
    passes,
    tell_left_out,
    tokenizer_of,
    training_sources,
    vocabulary,
)
from fmscale.train.engine.deepspeed_config import check_hpz
from fmscale.train.engine.optimizer import MOMENTS
from fmscale.train.init import find_init, with_model
from fmscale.train.length import RunLength, run_length
from fmscale.train.preflight.advice import Advice, advise, warnings_of
from fmscale.train.preflight.forecast import Forecast, forecast, without_memory
from fmscale.train.reference import with_reference
from fmscale.train.resume import choose_resume, compare_recorded
from fmscale.train.run_folder import check_folder, check_store
from fmscale.train.schedule import learning_rate
from fmscale.train.spikes import check_spike

MANY_EPOCHS = 4
"""Passes up to which repeated tokens teach as much as new tokens (Muennighoff et al. 2023, arXiv 2305.16264)."""
STORE_SECONDS = 10.0
"""Deadline of a store request: `fmscale plan` should answer even if the store is out of reach."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """Facts of a source in the store."""

    dataset: str
    split: str
    kind: str
    """`tokens` or `records`."""
    tokens: int | None
    """Tokens of the split; None for records."""
    rows: int
    """Rows of the run's length."""
    left_out: int
    """Tokens that are in no row."""
    share: float
    """Part of the run's samples."""
    epochs: float | None
    """Passes of the run over it; None for a run of unknown length."""
    epoch_requests: int
    """Requests to the store that a pass takes: one a unit."""
    epoch_bytes: int | None
    """Bytes that they read: the units in whole chunks; None for a dataset that the config does not name."""


@dataclass(kw_only=True)
class Preflight:
    """Findings about a run before its start. It runs checks, and keeps their errors instead of ending at the first."""

    forecast: Forecast = field(init=False)
    advice: Advice = field(init=False)
    sources: list[SourceFacts] = field(default_factory=list)
    """The datasets; empty if the store was not reached."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Stages, bans and quarantines that the run has recorded since its first stage."""
    begins: str = ""
    """Step or checkpoint at which the run would begin; empty if the store was not reached."""
    problems: list[FmscaleError] = field(default_factory=list)
    """Errors that the run would end with."""
    warnings: list[str] = field(default_factory=list)
    """Settings that would run but are probably a mistake."""
    notes: list[str] = field(default_factory=list)
    """Checks that were not possible, and data that the run leaves unread."""
    reachable: bool = True
    """False once the store has not answered."""

    def run(self, check: Callable[[], T]) -> T | None:
        """The check's result; None if it found a problem."""
        try:
            return check()
        except FmscaleError as error:
            self.add(error)
            return None

    def add(self, error: FmscaleError) -> None:
        """Keep a problem unless it is already kept: a dataset may be both a source and an evaluation set."""
        for problem in problems_of(error) if isinstance(error, ConfigError) else (error,):
            if str(problem) not in map(str, self.problems):
                self.problems.append(problem)

    def ask(self, check: Callable[[], T]) -> T | None:
        """Run a check that asks the store. A store that does not answer here may answer on the run's machines, so the
        failure becomes a note, and later checks do not ask the store.
        """
        if self.reachable:
            try:
                return check()
            except (StoreUnavailable, AccessDenied) as error:
                self.reachable = False
                self.notes.append(f"the store was not looked into any further: {error}")
            except FmscaleError as error:
                self.add(error)
        return None


def check_run(
    config: Config,
    world: int,
    *,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    device: str = "",
    device_memory: int | None = None,
    host_memory: int | None = None,
) -> Preflight:
    """Derive a run's numbers for `world` ranks and find problems that would end it. Writes nothing. Memories are bytes
    of a device (by default of a GPU that is here) and of a node.
    """
    checks = Preflight()
    here = torch.cuda.is_available() and config.train.device != "cpu"
    if here and device_memory is None:
        device_memory = torch.cuda.get_device_properties(0).total_memory
    on_gpu = here or config.train.device == "cuda" or bool(device_memory or device)
    config = replace(config, train=config.train.on("cuda" if on_gpu else "cpu"))
    batch = checks.run(lambda: derive_batch(config.batch, world, place=config.place("batch")))
    length = checks.run(lambda: run_length(config, batch)) if batch else None
    checks.run(lambda: check_length(config))
    checks.run(lambda: check_hpz(config, world))
    checks.run(lambda: check_spike(config))
    checks.run(lambda: check_folder(config))
    checks.run(lambda: check_sinks(config))
    backend = _open(config, checks)
    if backend:
        config = checks.ask(lambda: with_reference(with_model(config, backend), backend)) or config
    datasets: dict[str, Dataset] = {}
    sources = _sources(config, backend, checks, datasets) if backend else []
    recorded = checks.ask(lambda: replay(run_log(backend, config.train.run))) if backend else None
    if recorded and sources:
        checks.ask(lambda: require_recorded(config.train.run, recorded, sources, config.data.sources))
        checks.notes.extend(_unread(config, recorded, sources))
        checks.changes = order_changes(recorded)
        sources = list(recorded.stages[-1].sources)
    decoded = None
    if batch and backend and sources:
        decoded = checks.run(lambda: check_memory(config, backend, batch, sources))
    vocab_size: int | None = getattr(config.model, "vocab_size", None)
    if backend:
        tokenizer = checks.ask(lambda: tokenizer_of(config, backend))
        checks.ask(lambda: chat_facts(config, backend))
        if tokenizer:
            vocab_size = checks.run(lambda: vocabulary(config, tokenizer)) or tokenizer.vocab_size
        for chosen in config.evaluation.sets:
            source = SourceConfig(dataset=chosen.dataset, split=chosen.split, spec=chosen.spec)
            checks.ask(partial(training_sources, config, backend, [source]))
        digest = tokenizer.digest if tokenizer else None
        meta = None
        if not isinstance(config.model, InitModelConfig):  # without its source, which is a problem already
            begins = checks.ask(lambda: _begin(config, backend, recorded is not None, vocab_size, digest, checks))
            checks.begins, meta = begins or ("", None)
        if batch and length and meta:
            length = checks.run(lambda: run_length(config, batch, meta)) or length
    steps = length.steps if length else config.train.steps
    counts = None
    if vocab_size is None and type(config.model) is ModelConfig:
        unknown = ConfigError(
            "the size of the vocabulary is not known, and so neither are the model's parameters",
            found=f"{config.place('model.vocab_size')}: null, and no tokenizer from the store {config.store.url}",
            remedy="Give model.vocab_size, or plan where the store can be reached.",
        )
        checks.add(unknown)
    elif not isinstance(config.model, InitModelConfig):
        counts = checks.run(lambda: count_parameters(config.model, config.adapter, vocab_size=vocab_size))
        if counts and getattr(config.objective, "reference", None) == "model":
            counts = counts[0], sum(counts)
    checks.run(lambda: make_objective(config.objective))
    if type(config.model) is not ModelConfig:
        checks.notes.append(f"the FLOPs of model {kind_of(config.model)} are not known, and so neither is its mfu")
    views = [source.view for source in sources if isinstance(source.view, TokenView)]
    width = max((np.dtype(view.dtype).itemsize for view in views), default=None)
    checks.forecast = forecast(
        config,
        world,
        batch=batch,
        steps=steps,
        tokens=length.tokens(length.steps) if length else None,
        vocab_size=vocab_size,
        parameters=counts[0] if counts else None,
        frozen=counts[1] if counts else 0,
        token_bytes=width or (2 if (vocab_size or 0) <= 65536 else 4),
        decoded_bytes=decoded or 0,
        tokens_per_second=tokens_per_second,
        mfu=mfu,
        device=device,
        on_gpu=on_gpu,
    )
    checks.advice = advise(config, checks.forecast, device_memory=device_memory, host_memory=host_memory, on_gpu=on_gpu)
    checks.warnings += warnings_of(config, checks.forecast, checks.advice)
    checks.sources = _facts(sources, datasets, batch.global_batch * steps if batch and steps else None)
    checks.warnings += [*_warnings(config, length), *_repeats(checks.sources, steps)]
    checks.warnings += filter(None, (tell_left_out(source.view) for source in sources))
    checks.warnings += _without_targets(sources, datasets)
    return checks


def _open(config: Config, checks: Preflight) -> Backend | None:
    try:
        check_store(config)
    except FmscaleError as error:
        checks.add(error)
        if isinstance(error, ObjectNotFound):
            return None
    try:
        return open_store(config.store.url, read_only=True, deadline=min(config.store.deadline, STORE_SECONDS))
    except StoreError as error:
        checks.notes.append(f"the store was not looked into: {error}")
    except ConfigError as error:
        checks.add(error)
    return None


def _warnings(config: Config, length: RunLength | None) -> list[str]:
    warmup, peak = config.schedule.warmup_steps, config.optimizer.lr
    if length is None or warmup < (steps := length.steps):
        return []
    reached = learning_rate(config.schedule, peak, *length.place(steps - 1))
    return [
        f"{config.place('schedule.warmup_steps')} is {warmup}, and the run has {steps} steps: the learning rate "
        f"comes to {reached:.2g} and never to optimizer.lr, {peak:.2g}. Take schedule.warmup_steps of a tenth of "
        "the steps or less."
    ]


def _repeats(facts: list[SourceFacts], steps: int | None) -> list[str]:
    """Warnings about sources that the run reads too often."""
    warnings = []
    for source in facts:
        if steps and source.epochs and source.epochs > MANY_EPOCHS:
            amount = source.tokens or source.rows
            warnings.append(
                f"the run reads dataset {source.dataset} ({amount:,} {source.kind}) {source.epochs:.0f} times. Up to "
                f"{MANY_EPOCHS} times a token teaches as much as a new one, after some 16 next to nothing: it is "
                f"learned by heart. Give {amount * source.epochs / MANY_EPOCHS:,.0f} {source.kind} or more, or "
                f"train.steps {max(1, int(steps * MANY_EPOCHS / source.epochs))}."
            )
    return warnings


def _without_targets(sources: Sequence[Source], datasets: Mapping[str, Dataset]) -> list[str]:
    """Warnings of sources whose documents have a token each on average, as without an EOS."""
    warnings = []
    for view in (source.view for source in sources if isinstance(source.view, TokenView)):
        commits = datasets[view.dataset].named(view.commits) if view.dataset in datasets else []
        totals = [commit.totals[view.split] for commit in commits if view.split in commit.totals]
        tokens, documents = sum(each.tokens for each in totals), sum(each.documents for each in totals)
        if totals and tokens <= documents:
            warnings.append(
                f"dataset {view.dataset} has few or no targets to train on: {tokens:,} tokens in {documents:,} "
                "documents, and the first token of a document is no target. Ingest it with an EOS (without --no-eos)."
            )
    return warnings


def _sources(config: Config, backend: Backend, checks: Preflight, datasets: dict[str, Dataset]) -> list[Source]:
    """The sources as the loader would make them; [] if a source cannot be made. `datasets` receives theirs."""
    make, sources = partial(training_sources, config, backend, datasets=datasets), config.data.sources
    alone = [checks.ask(partial(make, [source])) for source in sources]
    return (checks.ask(partial(make, sources)) or []) if all(alone) else []


def _unread(config: Config, recorded: Plan, sources: list[Source]) -> list[str]:
    """Notes of commits that the run does not read because they came after its record."""
    notes = []
    for old, new, asked in zip(recorded.stages[-1].sources, sources, config.data.sources, strict=False):
        late = sorted(set(new.view.commits) - set(old.view.commits))
        if late and asked.commits is None and old.view.dataset == new.view.dataset:
            notes.append(
                f"run {config.train.run} reads commits {list(old.view.commits)} of dataset {old.view.dataset}, as it "
                f"began with them, and not {late}; another train.run reads all"
            )
    return notes


def _begin(
    config: Config, backend: Backend, recorded: bool, vocab_size: int | None, tokenizer: str | None, checks: Preflight
) -> tuple[str, Mapping[str, Any] | None]:
    """Step or checkpoint at which the run would begin, and the checkpoint's meta. Raises ConfigError if it cannot go on
    with this config.
    """
    resume = choose_resume(config, backend)
    if not resume.shown:
        begins = "at step 0, with the order that the run has recorded" if recorded else "at step 0"
        if (config.train.init is None and config.adapter is None) or vocab_size is None:
            return begins, None
        deadline = min(config.store.deadline, STORE_SECONDS)
        init = find_init(config, backend, vocab_size, tokenizer, deadline=deadline)
        checks.warnings += [init.warning] if init.warning else []
        under = "" if config.adapter is None else ", under an adapter"
        return f"{begins}{' and' if recorded else ', with'} the weights of {init.shown}{under}", None
    entry = newest(backend, resume.run, resume.which)
    where = f"{resume.run}@{entry.step}"
    manifest = load_manifest(backend, entry)
    if vocab_size is not None:
        _check_model(config, manifest, vocab_size, where)
    warning = compare_recorded(config, resume, manifest.meta, tokenizer)
    if config.adapter is not None:
        open_base(backend, manifest.meta, deadline=min(config.store.deadline, STORE_SECONDS))
    checks.warnings += [warning] if warning else []
    return f"from {'a fork of ' if resume.fork else ''}checkpoint {where}", manifest.meta


def _check_model(config: Config, manifest: CheckpointManifest, vocab_size: int, where: str) -> None:
    """Raise ConfigError if the checkpoint is of another model."""
    asked = [
        Tensor(name, state, "float32", tuple(p.shape))
        for name, p in without_memory(config, vocab_size).named_parameters()
        if p.requires_grad or config.adapter is None
        for state in ("weight", *(MOMENTS if p.requires_grad else ()))
    ]
    if getattr(config.objective, "reference", None) == "model":
        asked += [tensor._replace(name=REFERENCE + tensor.name) for tensor in asked if tensor.state == "weight"]
    refuse_other_model(manifest, [differences(manifest, asked, convert=True)], f"checkpoint {where}")


def _facts(sources: list[Source], datasets: Mapping[str, Dataset], samples: int | None) -> list[SourceFacts]:
    weights = sum(source.weight for source in sources)
    epochs: Sequence[float | None] = passes(samples, sources) if samples else [None] * len(sources)
    return [
        SourceFacts(
            dataset=source.view.dataset,
            split=source.view.split,
            kind=source.view.kind,
            tokens=source.view.kept if source.view.kind == "tokens" else None,
            rows=sum(source.view.rows),
            left_out=source.view.left_out,
            share=source.weight / weights,
            epochs=passed,
            epoch_requests=source.view.units.n,
            epoch_bytes=_epoch_bytes(source.view, datasets.get(source.view.dataset)),
        )
        for source, passed in zip(sources, epochs, strict=True)
    ]


def _epoch_bytes(view: View, dataset: Dataset | None) -> int | None:
    """At both ends of a unit, half a chunk on average is read besides."""
    return None if dataset is None else stored_bytes(view, dataset) + view.units.n * TOKEN_CHUNK_BYTES
