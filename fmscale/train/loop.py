"""The loop: steps, saves, evaluations, until the run is complete or its ranks agree to stop."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmscale.config import BatchShape
from fmscale.data.sample_loader import SampleLoader
from fmscale.errors import DataError, FmscaleError
from fmscale.objectives.protocol import Inputs, SampleBatch
from fmscale.runtime.stop import Stop
from fmscale.train.engine.protocol import Engine
from fmscale.train.journal import Journal, Timing
from fmscale.train.length import RunLength
from fmscale.train.reference import check_reference
from fmscale.train.rows import Rows
from fmscale.train.saving import Saving
from fmscale.train.schedule import learning_rate
from fmscale.train.seeds import seed_dropout
from fmscale.train.session import Session
from fmscale.train.spikes import Spikes
from fmscale.train.staging import Staging
from fmscale.train.step import train_step
from fmscale.train.trace import StepTrace

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
    evaluate: Callable[[int, bool], float | None]
    """Evaluates after a number of steps, if an evaluation is due or the step is the last; returns the loss of the set
    `evaluation.best`, if that was evaluated."""
    delivered: Callable[[Any, Inputs], None]
    """Records a microbatch from the inputs that the engine gets."""
    show: Callable[[Mapping[str, Any]], None]
    """Shows a record of progress, to which the loop adds the run's `steps`."""
    trace: StepTrace | None = None
    """Takes spans of the steps that `train.trace` names."""
    spikes: Spikes | None = None
    """Judges each step, and reacts to loss spikes; None if no step may be one."""


def run_loop(loop: Loop, length: RunLength, stepped: Callable[[int], None] = lambda step: None) -> tuple[int, Stop]:
    """Train from `length.first_step` to the end, or until the ranks agree to stop; return the steps taken and the
    reason (Stop.NO at the end). `stepped` is called after each step with the number of steps.

    The rows of a step are taken, and its facts exchanged, when the step before it has launched its last backward: a
    GPU is busy then, and every rank has sent its facts before the optimizer's collectives end. A stop or a save by the
    clock that comes later than that acts one step later. The records that are due are written there too, so that no
    rank waits for another between its optimizer and its next forward, but for a save or an evaluation.

    Raises Diverged after too many steps in a row that could not be applied, DataError if none had a target, Spiked.
    """
    session, config, where = loop.session, loop.session.config, loop.session.where

    def show(record: Mapping[str, Any]) -> None:
        loop.show({**record, "steps": length.steps})

    unapplied = bare = 0
    stop = Stop.NO
    step, last = length.first_step, length.steps
    # A save or evaluation after a step counts as time of the next step: the record of a step comes before its save.
    began, stalled, blocked = time.perf_counter(), loop.loader.stall_seconds, loop.saving.blocking_seconds
    take = partial(Rows.take, loop.loader, loop.engine.objective, loop.saving, session, Staging(session.device))
    taken = [take()] if step < last else []
    while step < last:
        where.phase, where.step = "train", step + 1
        if loop.trace is not None:
            loop.trace.begin(step + 1)
        rows = taken.pop()
        facts = rows.facts(session)
        if facts.stop:
            stop = facts.stop
            where.phase = "saving before the stop"
            loop.saving.save_before_stop(step, rows.state)
            break
        for batch, batch_inputs in zip(rows.batches, rows.inputs, strict=True):
            loop.delivered(batch, batch_inputs)
        if step == 0:
            check_reference(loop.engine, rows.inputs, config)

        def launched(more: bool = step + 1 < last) -> None:
            if more:
                taken.append(take())
            loop.journal.flush_due()
            if more:
                taken[0].exchange.finish()

        rate = learning_rate(config.schedule, config.optimizer.lr, *length.place(step))
        result = train_step(
            loop.engine,
            rows.inputs,
            count=facts.count,
            sources=len(loop.loader.plan.sources),
            rate=rate,
            seed=partial(seed_dropout, config.train.seed, step, session.dp.rank),
            launched=launched,
            fence=loop.saving.fence,
            accept=loop.spikes.judge(rows.state["k"], facts.count) if loop.spikes else None,
        )
        unapplied = 0 if result.update.applied else unapplied + 1
        step += 1
        bare = 0 if facts.count else bare + 1
        if unapplied and session.world.rank == 0:
            reason = f"gradient norm {result.update.grad_norm}" if facts.count else "it has nothing to train on"
            logger.warning("step %d was not applied: %s", step, reason)
        now, stall, blocking = time.perf_counter(), loop.loader.stall_seconds, loop.saving.blocking_seconds
        timing = Timing(step=now - began, data_stall=stall - stalled, ckpt_blocking=blocking - blocked)
        began, stalled, blocked = now, stall, blocking
        loop.journal.add(step - 1, rate, result, timing)
        if step == length.first_step + 1 or not taken or taken[0].ends_the_run:
            loop.journal.flush(show)
        elif step % config.train.log_every == 0:
            loop.journal.flush_later(show)
        if step == length.first_step + 1:
            phases = {**where.spent, "first step": timing.step}
            loop.journal.event(event="first_step", step=step, seconds=sum(phases.values()), phases=phases)
        if loop.spikes and (restored := loop.spikes.react(step)):
            length, step, unapplied = restored, restored.first_step, 0
            if taken:  # rows of the order before
                taken.pop().exchange.finish()
            taken.append(take())
            continue
        score = loop.evaluate(step, step == last)
        where.phase = "train"
        state = taken[0].state if taken else loop.loader.state_dict()
        loop.saving.step_done(step, state, due=facts.save, last=step == last, score=score)
        stepped(step)
        if unapplied >= config.train.nonfinite_limit:
            loop.journal.flush(show)
            if bare >= unapplied:
                raise DataError(
                    f"no sample of {unapplied} steps in a row has a target to train on",
                    found=f"steps {step + 1 - unapplied} to {step}",
                    remedy="The first token of a document is no target, so a document of a single token has none: "
                    "ingest with an EOS (without --no-eos), or take other data. `fmscale dataset trace --step N` shows "
                    "the documents of a step.",
                )
            raise Diverged(
                f"gradients were not finite in {unapplied} steps in a row",
                found=f"steps {step + 1 - unapplied} to {step}, gradient norm {result.update.grad_norm}",
                remedy="Lower optimizer.lr or clip_norm, or look at the samples of these steps with "
                "`fmscale dataset trace --step N`; `fmscale checkpoint list` shows what there is from before.",
            )
    loop.journal.flush(show)
    where.phase = "save"
    return step, stop


def dry_forwards(compiled: bool | None, batch: BatchShape, device: str) -> int:
    """Forwards of the dry run: two on a GPU if a step has several, as from the second on the sums of gradients lie
    beside the memory of a forward. None in an eager run on a CPU, which has nothing to compile and no memory to find
    out: with 42 M parameters a dry run takes 1 of the 2 CPU seconds until the first step is done.
    """
    if not device.startswith("cuda"):
        return int(bool(compiled))
    return 2 if batch.accumulation > 1 or batch.forward_tokens is not None else 1


def dry_run(loop: Loop, batch: SampleBatch, forwards: int = 1) -> None:
    """Run a step of so many forwards of a batch of weight 0, before the restore: it compiles and allocates, so that a
    lack of memory shows now and not at the first long document. Weights and moments stay unchanged.
    """
    loop.session.where.phase = "dry run"
    inputs = [loop.engine.objective.collate(batch).to(loop.session.device)] * forwards
    sources = len(loop.loader.plan.sources)
    train_step(loop.engine, inputs, count=1.0, sources=sources, rate=0.0, seed=lambda i: None)
    loop.engine.restored(0)
