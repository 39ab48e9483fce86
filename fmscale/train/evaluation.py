"""Losses on held-out rows while training."""

from collections.abc import Callable, Iterable, Iterator

import torch

from fmscale.config.train import EvaluationSet
from fmscale.data.open import open_loader
from fmscale.objectives.protocol import Inputs
from fmscale.runtime.collectives import total
from fmscale.train.engine.protocol import Engine
from fmscale.train.inputs import to_inputs
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
            losses[chosen.name or chosen.dataset] = heldout_loss(engine, heldout_rows(session, chosen, micro_batch))
        if losses:
            tell(event="evaluation", step=step, **{f"heldout/{name}": loss for name, loss in losses.items()})

    return evaluate


@torch.no_grad()
def heldout_loss(engine: Engine, microbatches: Iterable[Inputs]) -> float:
    """Mean loss in nats a token over all ranks' rows. Every rank must bring the same number of microbatches."""
    engine.module.eval()
    try:
        sums = [torch.stack((loss.sum.float(), loss.count.float())) for loss in map(engine.forward, microbatches)]
    finally:
        engine.module.train()
    loss, count = total(torch.stack(sums).sum(0)).tolist()
    return float(loss / count)


def heldout_rows(session: Session, chosen: EvaluationSet, micro_batch: int) -> Iterator[Inputs]:
    """This rank's microbatches of an evaluation set. All ranks together read the same rows at any number of ranks; rows
    beyond `chosen.rows` or the split have weight 0. Every rank gets the same number of microbatches.
    """
    world = session.world
    loader = open_loader(
        session.backend,
        sequence_length=session.config.data.sequence_length + 1,
        batch=micro_batch * world.dp_size,
        dataset=chosen.dataset,
        split=chosen.split,
        dp_rank=world.dp_rank,
        dp_size=world.dp_size,
        micro_batch=micro_batch,
        tiers=session.tiers,
        read_threads=1,
    )
    with loader:
        rows = min(chosen.rows, sum(loader.plan.sources[0].view.rows))
        for _ in range(-(-rows // (micro_batch * world.dp_size))):
            batch = next(loader)
            inputs = to_inputs(batch, session.device)
            inside = torch.zeros(batch.tokens.shape[0], dtype=torch.float32)
            inside[: batch.rows] = torch.from_numpy((batch.k < rows).astype("float32"))
            inputs.weights_BT.mul_(inside.to(session.device)[:, None])
            yield inputs
