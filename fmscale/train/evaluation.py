"""Losses on held-out rows while training."""

from collections.abc import Callable, Iterable, Iterator

import torch

from fmscale.config.train import EvaluationSet
from fmscale.data.open import open_loader
from fmscale.objectives.protocol import Inputs, Objective
from fmscale.runtime.axes import Axis
from fmscale.runtime.collectives import total
from fmscale.train.engine.protocol import Engine
from fmscale.train.session import Session


def evaluator(
    session: Session, engine: Engine, micro_batch: int, steps: int, tell: Callable[..., None]
) -> Callable[[int], None]:
    """Make a function of the step that evaluates every set if the step is due or the last."""
    config = session.config.evaluation

    def evaluate(step: int) -> None:
        if not (step == steps or (config.every and step % config.every == 0)):
            return
        session.where.phase = "evaluate"
        losses = {}
        for chosen in config.sets:
            rows = heldout_rows(session, engine.objective, chosen, micro_batch)
            losses[chosen.name or chosen.dataset] = heldout_loss(engine, rows, session.dp)
        if losses:
            tell(event="evaluation", step=step, **{f"heldout/{name}": loss for name, loss in losses.items()})

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
