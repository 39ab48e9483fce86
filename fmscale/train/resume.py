"""The checkpoint that a run begins with: its own newest valid one, or another run's (fork)."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest, warn_of_newer
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.persist.retention import mark_verified
from fmscale.checkpoint.read.meta import next_sample
from fmscale.checkpoint.read.restore import RestoreResult
from fmscale.checkpoint.read.restore import restore as read_checkpoint
from fmscale.config import BatchShape, Config, NextTokenConfig
from fmscale.data.sample_loader import SampleLoader
from fmscale.errors import ConfigError, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.train.engine.protocol import Engine
from fmscale.train.length import RunLength, run_length
from fmscale.train.model_changes import refuse_adapter_changes, refuse_model_changes, section_changes
from fmscale.train.saving import Saving
from fmscale.train.session import Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """The checkpoint that `train.resume` chooses."""

    run: str
    """Run from which the checkpoint is read."""
    which: str | int
    """"auto" for the newest that all ranks find valid, "best", or a step; "none" to begin anew."""
    fork: bool
    """True if another run's checkpoint begins this run."""

    @property
    def shown(self) -> str:
        """Address of the checkpoint for messages; empty if no checkpoint is read."""
        if self.which == "none":
            return ""
        return self.run if self.which == "auto" else f"{self.run}@{self.which}"


def choose_resume(config: Config, backend: Backend, *, first: bool = True) -> Resume:
    """Choose the checkpoint to begin from. A fork begins a new run; a run with its own checkpoints goes on from them.

    Call it under the run's lease: all ranks then see the same checkpoints. The `first` rank logs folders that are newer
    than the log; `restore` does it for a run that goes on.

    Raises ConfigError for a run without checkpoints, or for a run with checkpoints and `never`.
    """
    train = config.train
    own = list_checkpoints(backend, train.run)
    if first and not own:
        warn_of_newer(backend, train.run, own)
    if train.resume == "never":
        if own:
            raise ConfigError(
                f"{config.place('train.resume')} is never, but the run has checkpoints",
                found=f"run {train.run} at step {own[-1].step}",
                remedy="Take train.resume: auto to go on, or another train.run.",
            )
        return Resume(run=train.run, which="none", fork=False)
    if own or train.resume == "auto":
        _refuse_weights(config, "train.run", backend, own)
        return Resume(run=train.run, which="auto" if own else "none", fork=False)
    run, _, step = train.resume.partition("@")
    require_checkpoint(config, "train.resume", backend, run, step)
    _refuse_weights(config, "train.resume", backend, list_checkpoints(backend, run))
    return Resume(run=run, which=int(step) if step.isdecimal() else step or "auto", fork=True)


def _refuse_weights(config: Config, key: str, backend: Backend, found: Sequence[CheckpointEntry]) -> None:
    """Raise ConfigError for the checkpoint of an imported model, at step 0, which has weights and no training state."""
    if found and found[-1].step == 0 and "loader" not in load_manifest(backend, found[-1]).meta:
        run = found[-1].run
        raise ConfigError(
            f"{config.place(key)} names an imported model, which has no state of a training to go on from",
            found=run,
            remedy=f"Begin another train.run with its weights: train.init: {run}.",
        )


def require_checkpoint(config: Config, key: str, backend: Backend, run: str, step: str) -> None:
    """Raise ConfigError, with the place of `key`, unless the run has a checkpoint of the step (any, if it is empty)."""
    steps = [entry.step for entry in list_checkpoints(backend, run)]
    if not steps or (step not in ("", "best") and (not step.isdecimal() or int(step) not in steps)):
        raise ConfigError(
            f"{config.place(key)} names a checkpoint that is not there",
            found=f"{run}@{step}" if step else run,
            remedy=f"Steps of run {run}: {', '.join(map(str, steps))}."
            if steps
            else f"Run {run} has no checkpoint; `fmscale checkpoint list {backend.url}` shows all."
            + (" The path of a folder has a / in it." if key == "train.init" else ""),
        )


def restore(
    session: Session,
    resume: Resume,
    engine: Engine,
    loader: SampleLoader[Any],
    saving: Saving,
    tokenizer: str | None,
    batch: BatchShape,
    tell: Callable[..., None],
) -> tuple[dict[str, Any], RunLength]:
    """Restore engine and loader from the checkpoint of `resume`; return the checkpoint's meta, and the run's length.

    Raises ConfigError or StoreError if no checkpoint fits the run's model and tokenizer.
    """
    restored = read_checkpoint(
        session.backend,
        resume.run,
        engine.pieces(save=False),
        which=resume.which,
        waits=session.waits,
        stop=session.stop,
        tiers=session.tiers,
        convert=True,
    )
    assert restored is not None, "choose_resume saw a checkpoint, and nobody else may retire one now"
    meta = restored.meta
    length = run_length(session.config, batch, meta)
    warning = compare_recorded(session.config, resume, meta, tokenizer)
    if warning and session.world.rank == 0:
        logger.warning(warning)
    engine.restored(meta["updates"])
    if resume.fork:
        # The new run has a plan of its own, which goes on at the same sample.
        loader.load_state_dict({**loader.state_dict(), "k": next_sample(meta)})
    else:
        loader.load_state_dict(meta["loader"])
        _remember_verified(session, resume, restored)
        saving.begin_at(meta["step"], meta.get("best", math.inf))
    tell(
        event="resumed",
        step=meta["step"],
        steps=length.steps,
        run=resume.run,
        world_size_then=meta["world_size"],
        world_size=session.world.world_size,
        passed_over=[f"step {other.step}: {other.reason}" for other in restored.passed_over],
    )
    return meta, length


def compare_recorded(config: Config, resume: Resume, meta: Mapping[str, Any], tokenizer: str | None) -> str:
    """Raise ConfigError if the checkpoint's meta records another tokenizer or another function of the weights. Returns
    a warning of the keys that a fork changes, and of another objective.
    """
    if meta["tokenizer"] != tokenizer:
        raise ConfigError(
            "the checkpoint was trained with another tokenizer than the datasets have",
            found=f"{meta['tokenizer']}, the datasets have {tokenizer}",
            remedy="Ingest the data with the checkpoint's tokenizer, or begin a new run.",
        )
    where = f"{resume.run}@{meta['step']}"
    refuse_adapter_changes(config, meta, where)
    warnings = [refuse_model_changes(config, meta, where, fork=resume.fork)]
    if recorded := meta["config"].get("objective"):
        changes = section_changes(config.objective, {"kind": NextTokenConfig.kind, **recorded})
        warnings += [
            f"{config.place(f'objective.{key}')}: {ours}, checkpoint {where} recorded {was}"
            for key, (was, ours) in changes.items()
        ]
    return "; ".join(filter(None, warnings))


def _remember_verified(session: Session, resume: Resume, restored: RestoreResult) -> None:
    """Mark the checkpoint as verified: retention keeps it until a newer checkpoint is verified. A failure is logged."""
    if session.world.rank or restored.marked or not restored.verified:
        return
    try:
        mark_verified(run_log(session.backend, resume.run), restored.entry)
    except StoreError as error:
        logger.warning("step %d was read and is whole, but cannot be marked so: %s", restored.step, error)
