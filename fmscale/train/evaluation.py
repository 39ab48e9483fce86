"""Losses on held-out rows while training."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from fmscale.config import SourceConfig
from fmscale.config.train import EvaluationSet
from fmscale.data.open import open_flat_loader, open_loader
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.objectives.protocol import Inputs, Objective
from fmscale.runtime.axes import Axis
from fmscale.runtime.collectives import total
from fmscale.train.data import longest_sample
from fmscale.train.engine.protocol import Engine
from fmscale.train.session import Session

EVALUATED_AT_ONCE = 256
"""Samples of a step of evaluation in flat forwards: enough to fill the forwards of several ranks."""


def evaluator(
    session: Session,
    engine: Engine,
    micro_batch: int,
    tell: Callable[..., None],
    facts: Callable[[], Mapping[str, Any]],
) -> Callable[[int, bool], float | None]:
    """Make a function of a step that evaluates every set if the step is due or, by its second argument, the last. It
    returns the loss of the set `evaluation.best`, on every rank the same. `facts` are the meta of a checkpoint now.
    """
    config = session.config.evaluation

    def evaluate(step: int, last: bool) -> float | None:
        if not (last or (config.every and step % config.every == 0)):
            return None
        session.where.phase = "evaluate"
        began = time.perf_counter()
        losses = {}
        for chosen in config.sets:
            if session.config.batch.forward_tokens is None:
                rows = heldout_rows(session, engine.objective, chosen, micro_batch)
            else:
                rows = heldout_samples(session, engine.objective, chosen)
            losses[chosen.name or chosen.dataset] = heldout_loss(engine, rows, session.dp)
        if losses:
            heldout = {f"heldout/{name}": loss for name, loss in losses.items()}
            tell(event="evaluation", step=step, **heldout, seconds=time.perf_counter() - began)
        if config.prompts:
            from fmscale.train.generations import generations  # jinja2 and generation, which few runs need

            began = time.perf_counter()
            texts = generations(session, engine, facts)
            tell(event="generations", step=step, texts=texts, seconds=time.perf_counter() - began)
        return losses.get(config.best) if config.best is not None else None

    return evaluate


@torch.no_grad()
def heldout_loss(engine: Engine, microbatches: Iterable[Inputs], dp: Axis) -> float:
    """Mean loss over all ranks' rows. Every rank must bring the same number of microbatches; those of the same number
    are a step of their own for the objective's `before`.
    """
    engine.module.eval()
    try:
        losses = [engine.forward(inputs, *engine.before([inputs])) for inputs in microbatches]
        sums = [torch.stack((loss.sum.float(), loss.count.float())) for loss in losses]
    finally:
        engine.module.train()
    loss, count = total(torch.stack(sums).sum(0), dp).tolist()
    return float(loss / count)


def heldout_rows(session: Session, objective: Objective, chosen: EvaluationSet, micro_batch: int) -> Iterator[Inputs]:
    """This rank's microbatches of an evaluation set. All ranks together read the same rows at any number of ranks; rows
    beyond `chosen.rows` or the split have weight 0. Every rank gets the same number of microbatches.
    """
    dp = session.dp
    loader = open_loader(
        session.backend,
        sequence_length=session.config.data.sequence_length + 1,
        batch=micro_batch * dp.size,
        dataset=chosen.dataset,
        split=chosen.split,
        dp_rank=dp.rank,
        dp_size=dp.size,
        micro_batch=micro_batch,
        tiers=session.tiers,
        read_threads=1,
    )
    with loader:
        rows = min(chosen.rows, sum(loader.plan.sources[0].view.rows))
        for _ in range(-(-rows // (micro_batch * dp.size))):
            batch = next(loader)
            inside = torch.zeros(batch.tokens.shape[0], dtype=torch.float32)
            inside[: batch.rows] = torch.from_numpy((batch.k < rows).astype("float32"))
            batch.weights = batch.weights * inside[:, None]
            yield objective.collate(batch).to(session.device)


def heldout_samples(session: Session, objective: Objective, chosen: EvaluationSet) -> Iterator[Inputs]:
    """This rank's flat forwards of a set, as many as others have; in all the same samples at any number of ranks."""
    config, dp = session.config, session.dp
    assert config.batch.forward_tokens is not None, "the run has flat forwards"
    loader = open_flat_loader(
        session.backend,
        forward_tokens=config.batch.forward_tokens,
        sample_tokens=longest_sample(config),
        batch=1,
        sources=[SourceConfig(dataset=chosen.dataset, split=chosen.split, spec=chosen.spec)],
        spec=config.data.spec,
        sequence_length=config.data.sequence_length + 1,
        dp_rank=dp.rank,
        dp_size=dp.size,
        memory_bytes=config.data.memory_bytes,
        tiers=session.tiers,
        threads=1,
    )
    with loader:
        [stage] = loader.plan.stages
        left_out = sum(stop - first for ranges in stage.excluded for first, stop in ranges)
        samples = min(chosen.rows, loader.plan.orders[0].units.N - left_out)
        # The last step ends with the last sample, so that no sample of the next epoch is among them.
        steps, rest = divmod(samples, EVALUATED_AT_ONCE)
        parts = ((0, EVALUATED_AT_ONCE if steps else 0), (steps, rest))
        loader.schedule = BatchSchedule([(step, size) for step, size in parts if size])
        while loader.k < samples:
            yield objective.collate(next(loader)).to(session.device)
