"""Assembly of the parts of a run's loop, on every rank alike."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from fmscale.config import BatchShape, as_tree
from fmscale.config.derived import flops_per_token, num_parameters
from fmscale.config.peaks import peak_flops
from fmscale.data.loader import Loader
from fmscale.data.provenance.delivery import DeliveryRecord
from fmscale.runtime.sinks.jsonl import JsonlSink
from fmscale.train.data import memory_at_its_place, open_training, passes, tokenizer_of, vocabulary
from fmscale.train.engine.module import build_engine
from fmscale.train.evaluation import evaluator
from fmscale.train.inputs import received
from fmscale.train.journal import Journal
from fmscale.train.loop import Loop
from fmscale.train.resume import choose_resume, restore
from fmscale.train.saving import Saving, open_saver
from fmscale.train.session import Session

Show = Callable[[Mapping[str, Any]], None]
META_VERSION = 1
"""Version of the facts that a checkpoint has beside its tensors."""


def assemble(
    session: Session, batch: BatchShape, steps: int, stack: ExitStack, show: Show, event: Show
) -> tuple[Loop, Callable[[], int]]:
    """Open data, model, engine, journal and checkpoints of a run; `stack` closes them. Returns the loop, and a function
    that restores its state and returns the number of steps in that state.

    Takes the run's lease. Raises ConfigError, DataError or StoreError.
    """
    config, world, where = session.config, session.world, session.where
    where.phase = "opening the data"
    tokenizer = tokenizer_of(config, session.backend)
    vocab_size = vocabulary(config, tokenizer)
    lease = session.lease()
    resume = choose_resume(config, session.backend)
    with memory_at_its_place(config):
        loader = stack.enter_context(open_training(config, session.backend, world, session.dp, batch, lease=lease))
        loader.check_memory()
    if world.rank == 0:
        event(_opened(session, loader, vocab_size, batch, steps))

    where.phase = "building the model"
    engine = build_engine(config, session.dp, vocab_size, batch, session.device)
    journal = _journal(session, loader, engine.objective.unit, vocab_size, stack)

    def tell(**record: Any) -> None:
        journal.event(**record)
        if world.rank == 0:
            event({name: value for name, value in record.items() if name != "time"})

    def meta(step: int, loader_state: dict[str, Any]) -> dict[str, Any]:
        """Facts of a checkpoint beside its tensors. `updates` is AdamW's count of applied steps, without steps whose
        gradients were not finite. The loader's state is at the beginning of the next step.
        """
        return {
            "version": META_VERSION,
            "step": step,
            "updates": engine.updates,
            "loader": loader_state,
            "config": as_tree(config),
            "vocab_size": vocab_size,
            "tokenizer": tokenizer.digest,
            "world_size": world.world_size,
        }

    record = _delivery_record(session, lease, loader, stack)
    saving = Saving(
        saver=open_saver(session, lease),
        engine=engine,
        config=config.checkpoint,
        meta=meta,
        report=tell,
        newest=lambda step: session.from_rank_0("newest save", step),
        before=record.flush if record else lambda: None,
    )
    stack.callback(saving.close, 0.0)
    loop = Loop(
        session=session,
        engine=engine,
        loader=loader,
        saving=saving,
        journal=journal,
        steps=steps,
        evaluate=evaluator(session, engine, batch.micro_batch, steps, tell),
        delivered=(lambda batch, inputs: record.add(received(batch, inputs))) if record else lambda batch, inputs: None,
        show=(lambda record: show({**record, "steps": steps})) if world.rank == 0 else lambda record: None,
    )
    return loop, partial(restore, session, resume, engine, loader, saving, tokenizer.digest, tell)


def _opened(session: Session, loader: Loader, vocab_size: int, batch: BatchShape, steps: int) -> dict[str, Any]:
    """Facts of a run once its data is open, as an event."""
    sources = loader.plan.sources
    return {
        "event": "opened",
        "device": session.device,
        "parameters": num_parameters(session.config.model, vocab_size),
        "vocab_size": vocab_size,
        "steps": steps,
        "tokens_per_step": batch.global_batch * session.config.data.sequence_length,
        "sources": [
            {"label": source.label, "tokens": sum(source.view.tokens), "epochs": epochs}
            for source, epochs in zip(sources, passes(steps * batch.global_batch, sources), strict=True)
        ],
    }


def _journal(session: Session, loader: Loader, unit: str, vocab_size: int, stack: ExitStack) -> Journal:
    config = session.config
    sinks = []
    if session.world.rank == 0:
        sinks.append(JsonlSink(session.folder / "metrics.jsonl"))
        stack.callback(sinks[0].close)
    on_gpu = session.device.startswith("cuda")
    return Journal(
        sinks,
        [source.label for source in loader.plan.sources],
        unit=unit,
        dp=session.dp,
        flops_per_token=flops_per_token(config.model, vocab_size, config.data.sequence_length),
        peak_flops=peak_flops(torch.cuda.get_device_name()) if on_gpu else None,
        world_size=session.world.world_size,
    )


def _delivery_record(session: Session, lease: int, loader: Loader, stack: ExitStack) -> DeliveryRecord | None:
    """Record of the samples that this rank's model receives, a file for each rank and job; None if not configured."""
    if not (session.config.train.record_delivery and session.dp.first):
        return None
    name = f"{lease:06d}-rank{session.dp.rank:05d}.arrow"
    record = DeliveryRecord(session.folder / "delivery" / name, loader.plan.sources[0].view.dtype)
    return stack.enter_context(record)
