"""How many rows each step of a run has, from what its checkpoints say."""

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest
from fmscale.config import BatchConfig, derive_batch
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.errors import ConfigError
from fmscale.store.backends.protocol import Backend


def recorded_schedule(backend: Backend, run: str) -> BatchSchedule | None:
    """Rows of each step of the run; None where no checkpoint says so.

    A run that goes on with another global batch has steps of both. Raises ConfigError where a checkpoint between
    the two is gone, StoreError or CorruptData for one that cannot be read.
    """
    found = sorted(list_checkpoints(backend, run), key=lambda one: (one.step, one.entry))
    if not found:
        return None
    step, k, batch = _stand(backend, found[-1])
    if k == step * batch:
        return BatchSchedule([(0, batch)])
    schedule: dict[int, int] = {}
    before = (0, 0)
    for one in {one.step: one for one in found}.values():
        step, k, batch = _stand(backend, one)
        if k - before[1] != (step - before[0]) * batch:
            raise ConfigError(
                f"run {run} changed its global batch, and no checkpoint is left that says at which step",
                found=f"sample {before[1]} after step {before[0]}, sample {k} after step {step}",
                remedy="Delivery records name the samples of each step: a run keeps them with "
                "train.record_delivery: true.",
            )
        schedule[before[0]] = batch
        before = (step, k)
    return BatchSchedule(list(schedule.items()))


def trained_samples(backend: Backend, run: str) -> range | None:
    """Samples that the run's newest checkpoint has behind it; None without one. Of a run that began with another's
    state only the last of them is known to be its own. Raises StoreError or CorruptData.
    """
    newest = max(list_checkpoints(backend, run), key=lambda one: (one.step, one.entry), default=None)
    if newest is None:
        return None
    meta = load_manifest(backend, newest).meta
    stop, resume = meta["loader"]["k"], meta["config"].get("train", {}).get("resume", "auto")
    return range(0 if resume in ("auto", "never") else max(stop - 1, 0), stop)


def _stand(backend: Backend, found: CheckpointEntry) -> tuple[int, int, int]:
    """(steps taken, samples taken, rows of a step) at a checkpoint."""
    meta = load_manifest(backend, found).meta
    batch = derive_batch(BatchConfig(**meta["config"]["batch"]), meta["world_size"])
    return meta["step"], meta["loader"]["k"], batch.global_batch
