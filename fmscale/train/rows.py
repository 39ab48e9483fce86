"""The rows of a step, taken and counted over all ranks while the step before it computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fmscale.data.sample_loader import SampleLoader
from fmscale.objectives.protocol import Inputs, Objective, SampleBatch
from fmscale.runtime.collectives import Exchange, Facts
from fmscale.train.saving import Saving
from fmscale.train.session import Session
from fmscale.train.staging import Staging


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a step, taken while the step before it computes."""

    state: dict[str, Any]
    """The loader's state before these rows."""
    batches: Sequence[SampleBatch]
    inputs: Sequence[Inputs]
    """Inputs of the engine, on the device."""
    exchange: Exchange
    """The facts of the step, on their way between the ranks."""
    error: Exception | None = None
    """The loader's error instead of rows. It ends the run when the step begins, as the step before is complete then."""

    @classmethod
    def take(
        cls, loader: SampleLoader[Any], objective: Objective, saving: Saving, session: Session, staging: Staging
    ) -> "Rows":
        """The next rows of the loader; without them the other ranks get the news with the facts."""
        state = loader.state_dict()
        reason, save = session.stop.reason, saving.clock_due
        try:
            batches = [next(loader)]
            while not batches[-1].last_of_step:
                batches.append(next(loader))
            host = [objective.collate(batch) for batch in batches]
        except Exception as error:
            exchange = Exchange.start(0.0, reason, save=save, failed=True)
            return cls(state=state, batches=(), inputs=(), exchange=exchange, error=error)
        count = sum(float(each.weights.sum(dtype=torch.float64)) for each in host) if session.dp.first else 0.0
        exchange = Exchange.start(count, reason, save=save)
        return cls(state=state, batches=batches, inputs=staging.move(host), exchange=exchange)

    @property
    def ends_the_run(self) -> bool:
        """True on all ranks if the step is not taken: a rank has no rows, or was told to stop."""
        facts = self.exchange.finish()
        return facts.failed or bool(facts.stop)

    def facts(self, session: Session) -> Facts:
        """The facts of the step. Raises the loader's error, or RankError with that of another rank."""
        facts = self.exchange.finish()
        if self.error:
            raise self.error
        if facts.failed:
            session.waits.barrier("rows of a step", deadline=session.config.train.comm_seconds, stop=session.stop)
        return facts
