"""The loop: steps, saves, evaluations, until the run is complete or its ranks agree to stop."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fmscale.data.sample_loader import SampleLoader
from fmscale.errors import FmscaleError
from fmscale.objectives.protocol import Inputs, SampleBatch
from fmscale.runtime.collectives import Exchange
from fmscale.runtime.stop import Stop
from fmscale.train.engine.protocol import Engine
from fmscale.train.journal import Journal, Timing
from fmscale.train.saving import Saving
from fmscale.train.schedule import learning_rate
from fmscale.train.seeds import seed_dropout
from fmscale.train.session import Session
from fmscale.train.step import train_step

logger = logging.getLogger(__name__)


class Diverged(FmscaleError):
    """The loss or gradients stayed non-finite."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The parts of the loop, made by `setup.assemble`."""

    session: Session
    """This rank's place, device and signals."""
    engine: Engine
    loader: SampleLoader[Any]
    """The training samples, at the first step to run."""
    saving: Saving
    journal: Journal
    steps: int
    """Steps of the whole run."""
    evaluate: Callable[[int], None]
    """Evaluates after a number of steps, if an evaluation is due."""
    delivered: Callable[[Any, Inputs], None]
    """Records a microbatch from the inputs that the engine gets."""
    show: Callable[[Mapping[str, Any]], None]
    """Shows a record of progress, which also says the run's `steps`."""


def run_loop(loop: Loop, first_step: int) -> tuple[int, Stop]:
    """Train from step `first_step` to the end, or until the ranks agree to stop; return the steps taken and the
    reason (Stop.NO at the end).

    Raises Diverged after too many steps in a row that could not be applied.
    """
    session, config, where = loop.session, loop.session.config, loop.session.where
    unapplied = 0
    stop = Stop.NO
    step = first_step
    while step < loop.steps:
        where.phase, where.step = "train", step + 1
        began, stalled, blocked = time.perf_counter(), loop.loader.stall_seconds, loop.saving.blocking_seconds
        state = loop.loader.state_dict()
        microbatches = [next(loop.loader)]
        while not microbatches[-1].last_of_step:
            microbatches.append(next(loop.loader))
        host = [loop.engine.objective.collate(batch) for batch in microbatches]
        count = sum(float(each.weights.sum(dtype=torch.float64)) for each in host) if session.dp.first else 0.0
        exchange = Exchange.start(count, session.stop.reason, loop.saving.clock_due)
        inputs = [each.to(session.device) for each in host]
        facts = exchange.finish()
        if facts.stop:
            stop = facts.stop
            where.phase = "saving before the stop"
            loop.saving.save_before_stop(step, state)
            break
        for batch, batch_inputs in zip(microbatches, inputs, strict=True):
            loop.delivered(batch, batch_inputs)
        rate = learning_rate(config.schedule, config.optimizer.lr, step, loop.steps)
        result = train_step(
            loop.engine,
            inputs,
            count=facts.count,
            sources=len(loop.loader.plan.sources),
            rate=rate,
            seed=partial(seed_dropout, config.train.seed, step, session.dp.rank),
            fence=loop.saving.fence,
        )
        unapplied = 0 if result.update.applied else unapplied + 1
        step += 1
        if unapplied and session.world.rank == 0:
            logger.warning("step %d was not applied: gradient norm %s", step, result.update.grad_norm)
        loop.saving.step_done(step, loop.loader.state_dict(), due=facts.save, last=step == loop.steps)
        loop.evaluate(step)
        now = time.perf_counter()
        timing = Timing(
            step=now - began,
            data_stall=loop.loader.stall_seconds - stalled,
            ckpt_blocking=loop.saving.blocking_seconds - blocked,
        )
        loop.journal.add(step - 1, rate, result, timing)
        if unapplied >= config.train.nonfinite_limit:
            loop.journal.flush(loop.show)
            raise Diverged(
                f"gradients were not finite in {unapplied} steps in a row",
                found=f"steps {step + 1 - unapplied} to {step}, gradient norm {result.update.grad_norm}",
                remedy="Lower optimizer.lr or clip_norm, or look at the samples of these steps with "
                "`fmscale dataset trace --step N`; `fmscale checkpoint list` shows what there is from before.",
            )
        if step % config.train.log_every == 0 or step in (first_step + 1, loop.steps):
            loop.journal.flush(loop.show)
    loop.journal.flush(loop.show)
    where.phase = "save"
    return step, stop


def dry_run(loop: Loop, batch: SampleBatch) -> None:
    """Run a full step on a batch of weight 0 before the restore: it compiles and allocates, so that a lack of
    memory shows now and not at the first long document. Weights and moments stay unchanged.
    """
    loop.session.where.phase = "dry run"
    empty = loop.engine.objective.collate(batch).to(loop.session.device)
    sources = len(loop.loader.plan.sources)
    train_step(loop.engine, [empty], count=1.0, sources=sources, rate=0.0, seed=lambda i: None, fence=lambda: None)
    loop.engine.restored(0)
