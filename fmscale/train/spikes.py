"""Loss spikes: the rule by which a step counts as a spike, and the reaction to it, which is in the run's log (`spike`).

A spike is found before the update, from the loss and the gradient norm of all ranks, and its step is not applied. A
reaction is durable in the log before anything follows from it: a resume finds it there, at any number of ranks.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.persist.retention import VERIFIED, references
from fmscale.checkpoint.read.agree import DAMAGE
from fmscale.checkpoint.read.meta import next_sample
from fmscale.config import Config
from fmscale.data.plan.order_log import FORMAT_VERSION, bans_of
from fmscale.data.plan.plan import Plan
from fmscale.data.sample_loader import SampleLoader
from fmscale.errors import ConfigError, Conflict, DataError, FmscaleError
from fmscale.runtime.collectives import total
from fmscale.store.log.retirement import RetirementState, retire, unpin
from fmscale.train.length import RunLength
from fmscale.train.saving import Saving
from fmscale.train.session import Session

logger = logging.getLogger(__name__)

LEAST_SPREAD = 0.01
"""Least standard deviation that the rule takes, as a part of the median: equal losses would make any other a spike."""


class Spiked(FmscaleError):
    """A step was a spike, and the run does not go on."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A step that counts as a spike."""

    samples: range
    """Samples of the step."""
    loss: float
    """Mean loss over all ranks."""
    grad_norm: float
    """Global gradient norm before clipping."""
    cause: str
    """Reason, as the end of a sentence about the step."""


def highest(recent: Iterable[float], threshold: float) -> float:
    """Largest value that is no spike after `recent`: a median and a robust standard deviation, which a spike among them
    moves little (1.4826 makes the median absolute deviation that of a normal distribution).
    """
    values = list(recent)
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return middle + threshold * max(spread, LEAST_SPREAD * abs(middle))


def check_spike(config: Config) -> None:
    """Raise ConfigError if the run keeps fewer checkpoints than it may go back."""
    if config.spike.policy == "back" and config.spike.back > config.checkpoint.keep_last:
        raise ConfigError(
            f"{config.place('spike.back')} is more than the checkpoints that are kept",
            found=f"{config.spike.back}, checkpoint.keep_last {config.checkpoint.keep_last}",
            remedy=f"Take checkpoint.keep_last: {config.spike.back} or more, or go back fewer.",
        )


@dataclass(kw_only=True, eq=False)
class Spikes:
    """Judge of a run's steps, and its reactions. All ranks call the same methods and get the same answers."""

    session: Session
    lease: int
    """Number of the run's lease."""
    loader: SampleLoader[Any]
    saving: Saving
    flush: Callable[[], object]
    """Writes the records of the steps so far."""
    report: Callable[..., None]
    """Takes an event of each reaction."""
    go_back: Callable[[], RunLength]
    """Restores the newest checkpoint, and returns the run's length from there."""

    def __post_init__(self) -> None:
        self._config = self.session.config.spike
        self._recent: deque[tuple[float, float]] = deque(maxlen=self._config.window)
        self._stage = 0
        self._skips, self._count = set(self.loader.plan.skips), self.loader.plan.spikes
        self._found: Spike | None = None

    def state(self) -> dict[str, Any]:
        """Values that a checkpoint keeps, so that a resumed run judges as an uninterrupted run."""
        return {"recent": list(self._recent), "stage": self._stage}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state`, or without earlier steps."""
        state = state or {"recent": [], "stage": 0}
        self._recent.clear()
        self._recent.extend((loss, norm) for loss, norm in state["recent"])
        self._stage = state["stage"]

    def judge(self, k: int, count: float) -> Callable[[Tensor, float], bool]:
        """The function that accepts the update of the step that begins with sample `k` and has targets of weight
        `count`, by this rank's summed loss and the gradient norm.
        """
        schedule = self.loader.schedule
        return partial(self._accept, range(k, schedule.kappa(schedule.step_of(k) + 1)), count)

    def _accept(self, samples: range, count: float, loss_sum: Tensor, grad_norm: float) -> bool:
        if samples in self._skips:
            self._found = Spike(samples=samples, loss=math.nan, grad_norm=grad_norm, cause="the log says so")
            return False
        if self._config.policy is None or not count:
            return True
        dp = self.session.dp
        # The mean of the ranks' norms is one number on all of them, even if their last bits differ.
        sums = total(torch.tensor([float(loss_sum), grad_norm / dp.size], dtype=torch.float64), dp).tolist()
        values = {"loss": sums[0] / count, "gradient norm": sums[1]}
        stage = sum(stage.from_k <= samples.start for stage in self.loader.plan.stages)
        if stage != self._stage:
            self._recent.clear()
            self._stage = stage
        enough = len(self._recent) >= self._config.window // 2
        for place, (name, value) in enumerate(values.items()):
            limit = highest((pair[place] for pair in self._recent), self._config.threshold) if enough else math.inf
            if not (math.isfinite(value) and value <= limit):
                cause = f"its {name} is above {limit:.6g}" if math.isfinite(value) else f"its {name} is not finite"
                self._found = Spike(samples=samples, loss=sums[0] / count, grad_norm=sums[1], cause=cause)
                return False
        self._recent.append((values["loss"], values["gradient norm"]))
        return True

    def react(self, step: int) -> RunLength | None:
        """React to step `step`, counted from 1, if it was a spike. Returns the run's length from the restored
        checkpoint if the run went back, else None. Raises Spiked if it stops, StoreError.
        """
        spike, self._found = self._found, None
        if spike is None:
            return None
        self.flush()
        event = {"event": "spike", "step": step, "loss": spike.loss, "grad_norm": spike.grad_norm, "cause": spike.cause}
        if spike.samples in self._skips:
            self.report(**event, action="skip")
            return None
        if self._config.policy == "stop":
            raise self._stopped(step, spike)
        if self._count >= self._config.limit:
            raise self._stopped(step, spike, f"spike.limit {self._config.limit} is used up")
        self._count += 1
        if self._config.policy == "back":
            length = self._back(step, spike)
            self.report(**event, action="back", to_step=length.first_step)
            return length
        if self.session.world.rank == 0:
            run_log(self.session.backend, self._run).append("skip", _facts(step, spike), lease=self.lease)
        self._skips.add(spike.samples)
        self.report(**event, action="skip")
        return None

    @property
    def _run(self) -> str:
        return self.session.config.train.run

    def _back(self, step: int, spike: Spike) -> RunLength:
        self.session.where.phase = "going back before a spike"
        # A save under way would become durable behind the entry, and a resume would take it for newer.
        self.saving.settle()
        self.session.from_rank_0("saves before going back", 0)
        self.loader.refresh()
        entry = self._record(step, spike) if self.session.world.rank == 0 else 0
        self.session.from_rank_0("entry of going back", entry)
        self.loader.refresh()
        return self.go_back()

    def _record(self, step: int, spike: Spike) -> int:
        """Ban samples and retire the checkpoints behind the one to restore, in one log entry; its number."""
        log, state = run_log(self.session.backend, self._run), RetirementState()
        found = list_checkpoints(self.session.backend, self._run, state)
        valid = self._valid(found)
        if not valid:
            raise self._stopped(step, spike, "there is no valid checkpoint to go back to")
        target, k = valid[-1]
        first = max(k, spike.samples.stop - self._config.ban_steps * len(spike.samples))
        reason = f"step {step} was a spike: {spike.cause}"
        behind = [checkpoint.entry for checkpoint in found if checkpoint.entry > target.entry]
        try:
            bans = bans_of(self.loader.plan, range(first, spike.samples.stop), first, reason)
            plan = self.loader.plan
            for ban in bans:
                plan = plan.with_ban(ban)
            if marked := [number for number in behind if VERIFIED in state.pins.get(number, ())]:
                unpin(log, marked, VERIFIED, lease=self.lease, state=state)
            facts = {
                **_facts(step, spike),
                "to": {"step": target.step, "entry": target.entry},
                "bans": [ban.to_json() for ban in bans],
            }
            return retire(log, behind, references, reason=reason, lease=self.lease, state=state, back=facts).number
        except (Conflict, DataError) as error:
            raise self._stopped(step, spike, f"the run cannot go back: {error}") from error

    def _valid(self, found: list[CheckpointEntry]) -> list[tuple[CheckpointEntry, int]]:
        """The newest `spike.back` checkpoints with a whole manifest, newest first, each with its next sample."""
        valid: list[tuple[CheckpointEntry, int]] = []
        for checkpoint in reversed(found):
            try:
                valid.append((checkpoint, next_sample(load_manifest(self.session.backend, checkpoint).meta)))
            except DAMAGE as error:
                logger.warning("step %d is passed over: %s", checkpoint.step, error)
            if len(valid) == self._config.back:
                break
        return valid

    def _stopped(self, step: int, spike: Spike, also: str = "") -> Spiked:
        address, first, last = f"{self.session.backend.url}#{self._run}", spike.samples.start, spike.samples.stop - 1
        return Spiked(
            f"step {step} is a spike, and was not applied: {spike.cause}" + (f"; {also}" if also else ""),
            found=f"loss {spike.loss:.6g}, gradient norm {spike.grad_norm:.6g}, samples {first} to {last}: "
            + where_from(self.loader.plan, spike.samples),
            remedy=f"`fmscale dataset trace {address} --step {step}` shows its documents. Ban them (`fmscale run ban "
            f"{address} --samples {first}-{last} --reason TEXT --stopped`) or lower optimizer.lr, and run the same "
            "command again: it goes on from the newest checkpoint.",
        )


def where_from(plan: Plan, samples: range) -> str:
    """The rows and units of some samples, by source."""
    found = plan.samples(np.arange(samples.start, samples.stop, dtype=np.uint64))
    texts = []
    for number, source in enumerate(plan.sources):
        rows = np.unique(found.row[found.source == number])
        if len(rows):
            units = np.unique(source.view.units.unit_of(rows)[0])
            texts.append(f"{source.label} rows {_some(rows)} in units {_some(units)}")
    return "; ".join(texts)


def _some(numbers: Any) -> str:
    more = len(numbers) - 6
    return ", ".join(map(str, numbers[:6].tolist())) + (f" and {more} more" if more > 0 else "")


def _facts(step: int, spike: Spike) -> dict[str, Any]:
    """Facts of a log entry. Losses are texts: JSON has no number that is not finite."""
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "samples": [spike.samples.start, spike.samples.stop],
        "loss": repr(spike.loss),
        "grad_norm": repr(spike.grad_norm),
        "reason": spike.cause,
    }
