"""Assembly of the parts of a run's loop, on every rank alike."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from fmscale.checkpoint.base import BASE, open_base
from fmscale.checkpoint.read.meta import inherited
from fmscale.config import BatchShape, ModelConfig, as_tree
from fmscale.config.derived import flops_per_token
from fmscale.config.peaks import peak_flops
from fmscale.data.provenance.delivery import DeliveryRecord
from fmscale.data.sample_loader import SampleLoader
from fmscale.data.views.token_view import TokenView
from fmscale.models.lora import count_parameters
from fmscale.runtime.sinks.jsonl import JsonlSink
from fmscale.runtime.sinks.protocol import RunInfo
from fmscale.runtime.sinks.run_sinks import RunSinks
from fmscale.text import clean_tree
from fmscale.train.adapters import load_base
from fmscale.train.data import (
    chat_facts,
    memory_at_its_place,
    memory_of_the_machine,
    open_training,
    passes,
    tell_left_out,
    tokenizer_of,
    vocabulary,
)
from fmscale.train.engine.cores import cores_of
from fmscale.train.engine.memory import device_memory
from fmscale.train.engine.module import build_engine
from fmscale.train.evaluation import evaluator
from fmscale.train.init import find_init, load_init
from fmscale.train.inputs import deliver
from fmscale.train.journal import Journal
from fmscale.train.length import RunLength
from fmscale.train.loop import Loop
from fmscale.train.reference import pin_reference
from fmscale.train.resume import Resume, choose_resume, restore
from fmscale.train.saving import Saving, open_saver
from fmscale.train.session import Session
from fmscale.train.spikes import Spikes
from fmscale.train.trace import StepTrace

logger = logging.getLogger(__name__)

AnyLoader = SampleLoader[Any]
"""Loader of rows or of flat forwards."""
Show = Callable[[Mapping[str, Any]], None]
META_VERSION = 1
"""Version of the facts that a checkpoint has beside its tensors."""


def assemble(
    session: Session, batch: BatchShape, length: RunLength, stack: ExitStack, show: Show, event: Show
) -> tuple[Loop, Callable[[], RunLength]]:
    """Open data, model, engine, journal and checkpoints of a run, which has `length` if it begins; `stack` closes them.
    Returns the loop, and a function that restores its state and returns the length from there.

    Takes the run's lease. Raises ConfigError, DataError or StoreError.
    """
    config, world, where = session.config, session.world, session.where
    where.phase = "opening the data"
    tokenizer = tokenizer_of(config, session.backend)
    vocab_size = vocabulary(config, tokenizer)
    tokenizer_digest = None if tokenizer is None else tokenizer.digest
    chat = chat_facts(config, session.backend)
    lease = session.lease()
    resume = choose_resume(config, session.backend, first=session.world.rank == 0)
    new = resume.which == "none" and (config.train.init is not None or config.adapter is not None)
    init = find_init(config, session.backend, vocab_size, tokenizer_digest) if new else None
    origin: dict[str, Any] = {}
    with memory_at_its_place(config), memory_of_the_machine(config):
        loader = stack.enter_context(
            open_training(config, session.backend, world, session.dp, batch, lease=lease, tiers=session.tiers)
        )
        loader.check_memory()
    if world.rank == 0:
        for warning in filter(None, (tell_left_out(source.view) for source in loader.plan.sources)):
            logger.warning(warning)
        event(_opened(session, loader, vocab_size, batch, length, resumes=resume.which != "none"))

    session.all_open()
    where.phase = "building the model"
    choices: dict[str, Any] = {"draw": resume.which == "none", "cores": cores_of(world.local_size)}
    with device_memory(config, batch, session.device):
        engine = build_engine(config, session.dp, vocab_size, batch, session.device, **choices)
    journal = _journal(session, loader, engine.objective.unit, vocab_size, stack)

    def tell(**record: Any) -> None:
        journal.event(**record)
        if world.rank == 0:
            event({name: value for name, value in record.items() if name != "time"})

    def meta(step: int, loader_state: dict[str, Any]) -> dict[str, Any]:
        """Facts of a checkpoint beside its tensors. `updates` is AdamW's count of applied steps, without steps whose
        gradients were not finite. The loader's state is at the beginning of the next step. `tokens` are those of all
        steps so far. `init` has the source of the first weights, where `train.init` named it, `base` the base of an
        adapter, `spike` the values that later steps are judged by; other facts are those of the imported model that
        the run began with.
        """
        return {
            **origin,
            "version": META_VERSION,
            "step": step,
            "updates": engine.updates,
            "loader": loader_state,
            "config": clean_tree(as_tree(config)),
            "vocab_size": vocab_size,
            "tokenizer": tokenizer_digest,
            **chat,
            "world_size": world.world_size,
            "tokens": length.tokens(step),
            "first_step_tokens": length.unit,
            **({"spike": spikes.state()} if config.spike.policy else {}),
        }

    record = _delivery_record(session, lease, loader, stack)

    def before_save() -> None:
        journal.flush()
        if record:
            record.flush()

    saving = Saving(
        saver=open_saver(session, lease),
        engine=engine,
        config=config.checkpoint,
        meta=meta,
        report=tell,
        newest=lambda step: session.from_rank_0("newest save", step),
        before=before_save,
    )
    stack.callback(saving.close, 0.0)
    trace = None
    if config.train.trace is not None:
        trace = StepTrace(session.folder, session.world.rank, config.train.traced(), device=session.device)
        trace.watch(type(engine), type(loader), type(session.backend), lambda: saving.reports)
        stack.callback(trace.close)

    def resumed(which: Resume) -> Mapping[str, Any]:
        nonlocal length
        restored, length = restore(session, which, engine, loader, saving, tokenizer_digest, batch, tell)
        spikes.load(restored.get("spike"))
        if record and loader.changed_from is not None:
            record.restart(loader.changed_from)
        return restored

    def go_back() -> RunLength:
        resumed(Resume(run=config.train.run, which="auto", fork=False))
        return length

    spikes = Spikes(
        session=session,
        lease=lease,
        loader=loader,
        saving=saving,
        flush=journal.flush,
        report=tell,
        go_back=go_back,
    )
    loop = Loop(
        session=session,
        engine=engine,
        loader=loader,
        saving=saving,
        journal=journal,
        evaluate=evaluator(session, engine, batch.micro_batch, tell, lambda: meta(0, {})),
        delivered=partial(deliver, record) if record else lambda batch, inputs: None,
        show=show if world.rank == 0 else lambda record: None,
        trace=trace,
        spikes=spikes if config.spike.policy or loader.plan.skips else None,
    )

    def begin() -> RunLength:
        if world.rank == 0:
            pin_reference(config, session.backend)
        if resume.which != "none":
            restored = resumed(resume)
            origin.update(inherited(restored))
            if "init" in restored:
                origin["init"] = restored["init"]
            if config.adapter is not None:
                base = open_base(session.backend, restored, deadline=config.store.deadline)
                origin[BASE] = load_base(session, base, engine)
                engine.restored(engine.updates)
        elif init is not None:
            origin.update(init.facts)
            if init.base is not None:
                origin[BASE] = load_base(session, init.base, engine)
            origin["init"] = load_init(session, init, engine)
            tell(event="initialised", **origin["init"])
        journal.sinks.open(length.first_step)
        return length

    return loop, begin


def _opened(
    session: Session, loader: AnyLoader, vocab_size: int | None, batch: BatchShape, length: RunLength, *, resumes: bool
) -> dict[str, Any]:
    """Facts of a run once its data is open, as an event. `steps` is None if it depends on the tokens of earlier jobs,
    which the restore finds.
    """
    sources = loader.plan.sources
    return {
        "event": "opened",
        "device": session.device,
        "parameters": count_parameters(session.config.model, session.config.adapter, vocab_size=vocab_size)[0],
        "vocab_size": vocab_size,
        "steps": None if resumes and length.by_tokens else length.steps,
        "tokens_per_step": length.step_tokens,
        "sources": [
            {
                "label": source.label,
                source.view.kind: source.view.kept,
                "epochs": epochs,
                "left_out": source.view.left_out,
            }
            for source, epochs in zip(sources, passes(length.steps * batch.global_batch, sources), strict=True)
        ],
    }


def _journal(session: Session, loader: AnyLoader, unit: str, vocab_size: int | None, stack: ExitStack) -> Journal:
    config, folder = session.config, session.folder
    run = RunInfo(name=config.train.run, store=session.backend.url, folder=folder, config=clean_tree(as_tree(config)))
    file = JsonlSink(folder / "metrics.jsonl") if session.world.rank == 0 else None

    def reads() -> dict[str, int]:
        fetcher, kinds = loader.fetcher, session.backend.requests.bytes.items()
        return {
            "read_bytes": sum(size for kind, size in kinds if kind.startswith("get")),
            "cached_bytes": fetcher.cache.requests.bytes.get("hit", 0) if fetcher.cache else 0,
            "bad_cached": fetcher.dropped,
            "bad_stored": fetcher.reread,
        }

    decoder = config.model if type(config.model) is ModelConfig else None
    trained, frozen = count_parameters(config.model, config.adapter, vocab_size=vocab_size) if decoder else (0, 0)
    on_gpu = session.device.startswith("cuda")
    # Samples of mixed lengths: the share of attention, which grows with the length, is left out of the estimate.
    length = 1 if config.batch.forward_tokens else config.data.sequence_length
    journal = Journal(
        RunSinks(file, config.metrics.sinks, run),
        [source.label for source in loader.plan.sources],
        unit=unit,
        dp=session.dp,
        flops_per_token=flops_per_token(decoder, vocab_size, length, trained if frozen else 0)
        if decoder and vocab_size
        else None,
        peak_flops=peak_flops(torch.cuda.get_device_name()) if on_gpu else None,
        world_size=session.world.world_size,
        reads=reads,
    )
    stack.push(journal.close)
    journal.event(
        event="started",
        began=session.where.began,
        world_size=session.world.world_size,
        zero_stage=config.train.zero_stage,
        device=torch.cuda.get_device_name() if on_gpu else session.device,
        flops_per_token=journal.flops_per_token,
        peak_flops=journal.peak,
    )
    return journal


def _delivery_record(session: Session, lease: int, loader: AnyLoader, stack: ExitStack) -> DeliveryRecord | None:
    """Record of the samples that this rank's model receives, a file for each rank and job; None if not configured."""
    if not (session.config.train.record_delivery and session.dp.first):
        return None
    name = f"{lease:06d}-rank{session.dp.rank:05d}.arrow"
    view = loader.plan.sources[0].view
    record = DeliveryRecord(session.folder / "delivery" / name, view.dtype if isinstance(view, TokenView) else "")
    return stack.enter_context(record)
