"""Length of a run: tokens that were trained and tokens that are left, in steps of this job's batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmscale.checkpoint.read.meta import next_sample, section
from fmscale.config import BatchConfig, BatchShape, Config, derive_batch
from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """Steps of a run, whose jobs may have different batches, and the place of a step in the schedule."""

    steps: int
    """Steps of the whole run."""
    first_step: int = 0
    """Steps before this job."""
    before: int | None = 0
    """Tokens before this job; None if samples have lengths of their own."""
    step_tokens: int | None
    """Tokens of a step of this job, or None."""
    unit: int | None
    """Tokens of the run's first step, or None."""
    by_tokens: bool = False
    """True if `train.tokens` gives the length, and so tokens measure the schedule."""

    def tokens(self, step: int) -> int | None:
        """Tokens of the first `step` steps."""
        if self.before is None or self.step_tokens is None:
            return None
        return self.before + (step - self.first_step) * self.step_tokens

    def place(self, step: int) -> tuple[float, float]:
        """Number of a step in the schedule, and the schedule's steps. By tokens these are steps of the run's first
        batch, so that another batch neither warms up again nor decays early.
        """
        done, whole = self.tokens(step + 1), self.tokens(self.steps)
        if not self.by_tokens or done is None or whole is None or self.unit is None:
            return step, self.steps
        return done / self.unit - 1, whole / self.unit


def run_length(config: Config, batch: BatchShape, meta: Mapping[str, Any] | None = None) -> RunLength:
    """The run's length with this batch, from the checkpoint that has `meta`, or from the beginning.

    Raises ConfigError if the config gives no length, or `train.tokens` where samples have lengths of their own.
    """
    train = config.train
    if train.steps is None and train.tokens is None:
        raise ConfigError(
            f"{config.place('train')} does not say how long the run is", remedy="Give train.steps or train.tokens."
        )
    flat = batch.forward_tokens is not None
    step_tokens = None if flat else batch.global_batch * config.data.sequence_length
    first, before, unit = 0, 0 if step_tokens else None, step_tokens
    if meta is not None:
        first, (before, unit) = int(meta["step"]), _trained(meta)
    steps = train.steps
    if steps is None:
        assert train.tokens
        if step_tokens is None or before is None:
            raise ConfigError(
                f"{config.place('train.tokens')}: samples have lengths of their own, and tokens give no number of "
                "steps" + ("" if flat else " after the checkpoint"),
                found=train.tokens,
                remedy="Give train.steps.",
            )
        steps = first + max(0, -(-(train.tokens - before) // step_tokens))
    return RunLength(
        steps=steps,
        first_step=first,
        before=before,
        step_tokens=step_tokens,
        unit=unit,
        by_tokens=train.steps is None,
    )


def _trained(meta: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens behind a checkpoint, and tokens of its run's first step; None for samples with lengths of their own."""
    if "tokens" in meta:
        return meta["tokens"], meta["first_step_tokens"]
    # A checkpoint without the two numbers is from an earlier version: its last batch passes for the first.
    batch = derive_batch(section(meta, "batch", BatchConfig), meta["world_size"])
    length = meta["config"]["data"]["sequence_length"]
    return (None, None) if batch.forward_tokens else (next_sample(meta) * length, batch.global_batch * length)
