"""A run from its config: ranks brought together, everything built and restored, the loop, the end."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmscale.config import Batch, Config, as_tree, derive_batch
from fmscale.config.model import flops_per_token
from fmscale.data.delivery import DeliveryRecord
from fmscale.data.loader import Loader
from fmscale.errors import ConfigError
from fmscale.runtime.failure import Whereabouts, recorded
from fmscale.runtime.sinks import JsonlSink
from fmscale.runtime.stop import Stop
from fmscale.runtime.world import World, read_world
from fmscale.train.build import build_engine
from fmscale.train.data import Shares, check_length, heldout_rows, open_training, tokenizer_of, vocabulary
from fmscale.train.engine import Engine
from fmscale.train.evaluation import heldout_loss
from fmscale.train.journal import Journal
from fmscale.train.loop import Loop, dry_run, run_loop
from fmscale.train.peaks import peak_flops
from fmscale.train.resume import choose_resume, restore
from fmscale.train.saving import RunMeta, Saving, open_saver
from fmscale.train.schedule import learning_rate
from fmscale.train.session import Session, meet, run_folder

logger = logging.getLogger(__name__)

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, as every rank sees it."""

    run: str
    """Its name."""
    first_step: int
    """Steps that had been taken before this job began."""
    last_step: int
    """Steps taken now."""
    stop: Stop
    """Why it stopped before its end; NO if it is complete."""
    saved: bool
    """Whether the state after `last_step` is durable on the store."""
    folder: Path
    """Where metrics and records are."""
    world: World
    """This process's place."""

    def to_json(self) -> dict[str, Any]:
        """What outcome.json says: a requeue script looks at `complete`."""
        return {
            "run": self.run,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "complete": not self.stop,
            "stop": self.stop.name if self.stop else None,
            "saved": self.saved,
            "world_size": self.world.world_size,
        }


def run_training(config: Config, *, show: Show, event: Show) -> Outcome:
    """Train as the config says, from the newest checkpoint if there is one.

    `show` gets the record of a step every log_every steps, `event` what happens otherwise; both on rank 0 only.
    Raises FmscaleError with the remedy; the first rank to fail writes error.json into the run's folder.
    """
    world = read_world()
    if world.notice:
        logger.warning(world.notice)
    where = Whereabouts()
    with recorded(run_folder(config), world, where), ExitStack() as stack:
        batch = derive_batch(config.batch, world.dp_size, place=config.place("batch"))
        steps = total_steps(config, batch.global_batch)
        check_length(config)
        session = meet(config, world, where, stack)
        try:
            return _run(session, batch, steps, stack, show, event)
        except Exception as error:
            session.waits.fail(error, where.phase)
            raise


def _run(session: Session, batch: Batch, steps: int, stack: ExitStack, show: Show, event: Show) -> Outcome:
    config, world, where = session.config, session.world, session.where
    where.phase = "opening the data"
    tokenizer = tokenizer_of(config, session.backend)
    vocab_size = vocabulary(config, tokenizer)
    epoch = session.lease()
    resume = choose_resume(config, session.backend)
    shares = Shares(global_batch=batch.global_batch, micro_batch=batch.micro_batch)
    loader = stack.enter_context(open_training(config, session.backend, world, shares, epoch=epoch))

    where.phase = "building the model"
    engine = build_engine(config, world, vocab_size, batch, session.device)
    journal = _journal(session, loader, vocab_size, stack)

    def tell(**record: Any) -> None:
        journal.event(**record)
        if world.rank == 0:
            event(record)

    def meta(step: int, loader_state: dict[str, Any]) -> RunMeta:
        return RunMeta(
            step=step,
            updates=engine.updates,
            loader=loader_state,
            config=as_tree(config),
            vocab_size=vocab_size,
            tokenizer=tokenizer.digest,
            world_size=world.world_size,
        )

    record = _delivery_record(session, epoch, loader, stack)
    saving = Saving(
        open_saver(session, epoch),
        engine,
        config.checkpoint,
        meta=meta,
        report=tell,
        before=record.flush if record else lambda: None,
    )
    stack.callback(saving.close, 0.0)
    loop = Loop(
        engine=engine,
        loader=loader,
        saving=saving,
        journal=journal,
        stop=session.stop,
        where=where,
        steps=steps,
        rate=lambda step: learning_rate(config.schedule, config.optimizer.lr, step, steps),
        evaluate=_evaluator(session, engine, batch.micro_batch, steps, tell),
        delivered=record.add if record else lambda batch: None,
        log_every=config.train.log_every,
        nonfinite_limit=config.train.nonfinite_limit,
        sources=len(loader.plan.sources),
        seed=config.train.seed,
        dp_rank=world.dp_rank,
        device=session.device,
        show=show if world.rank == 0 else lambda record: None,
    )
    dry_run(loop, batch.micro_batch, config.data.sequence_length)
    where.phase = "restore"
    first = restore(session, resume, engine, loader, saving, tokenizer.digest, tell)
    reason = run_loop(loop, first)
    where.phase = "waiting for the last save"
    saving.close(config.checkpoint.seal_seconds)
    session.waits.barrier("end of the run")
    outcome = Outcome(
        run=config.train.run,
        first_step=first,
        last_step=saving.last_saved if reason else max(first, steps),
        stop=reason,
        saved=saving.acknowledged == saving.last_saved,
        folder=session.folder,
        world=world,
    )
    if world.rank == 0:
        (session.folder / "outcome.json").write_text(json.dumps(outcome.to_json(), indent=2) + "\n")
    return outcome


def total_steps(config: Config, global_batch: int) -> int:
    """Steps of the whole run. Raises ConfigError if the config does not say how long it is."""
    train = config.train
    if train.steps is not None:
        return train.steps
    if train.tokens is None:
        raise ConfigError(
            f"{config.place('train')} does not say how long the run is",
            remedy="Give train.steps or train.tokens.",
        )
    return -(-train.tokens // (global_batch * config.data.sequence_length))


def _journal(session: Session, loader: Loader, vocab_size: int, stack: ExitStack) -> Journal:
    config = session.config
    sinks = []
    if session.world.rank == 0:
        sinks.append(JsonlSink(session.folder / "metrics.jsonl"))
        stack.callback(sinks[0].close)
    on_gpu = session.device.startswith("cuda")
    return Journal(
        sinks,
        [source.label for source in loader.plan.sources],
        flops_per_token=flops_per_token(config.model, vocab_size, config.data.sequence_length),
        peak_flops=peak_flops(torch.cuda.get_device_name()) if on_gpu else None,
        world_size=session.world.world_size,
    )


def _delivery_record(session: Session, epoch: int, loader: Loader, stack: ExitStack) -> DeliveryRecord | None:
    """Where this rank writes down what its model receives, one file a rank and job; None if it need not."""
    if not session.config.train.record_delivery:
        return None
    name = f"{epoch:06d}-rank{session.world.rank:05d}.arrow"
    record = DeliveryRecord(session.folder / "delivery" / name, loader.plan.sources[0].view.dtype)
    return stack.enter_context(record)


def _evaluator(
    session: Session, engine: Engine, micro_batch: int, steps: int, tell: Callable[..., None]
) -> Callable[[int], None]:
    """Evaluates every set when its step has come, and at the end."""
    config = session.config.evaluation

    def evaluate(step: int) -> None:
        if not (step == steps or (config.every and step % config.every == 0)):
            return
        session.where.phase = "evaluate"
        losses = {}
        for chosen in config.sets:
            rows = heldout_rows(
                session.backend,
                chosen,
                session.world,
                sequence_length=session.config.data.sequence_length,
                micro_batch=micro_batch,
                device=session.device,
            )
            losses[chosen.name or chosen.dataset] = heldout_loss(engine, rows)
        if losses:
            tell(event="evaluation", step=step, **{f"heldout/{name}": loss for name, loss in losses.items()})

    return evaluate
