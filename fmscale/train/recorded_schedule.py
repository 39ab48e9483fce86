"""The batch schedule of a run, and the samples behind it, as its checkpoints recorded them."""

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest
from fmscale.checkpoint.read.meta import next_sample, section
from fmscale.config import BatchConfig, derive_batch
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.errors import ConfigError
from fmscale.store.backends.protocol import Backend


def recorded_schedule(backend: Backend, run: str) -> BatchSchedule | None:
    """Rows of each step of the run; None for a run without checkpoints.

    A run may go on with another global batch. Raises ConfigError if the checkpoint between the two batches is
    gone, StoreError or CorruptData for a checkpoint that cannot be read.
    """
    entries = sorted(list_checkpoints(backend, run), key=lambda entry: (entry.step, entry.entry))
    if not entries:
        return None
    step, k, batch = _stand(backend, entries[-1])
    if k == step * batch:
        return BatchSchedule([(0, batch)])
    schedule: dict[int, int] = {}
    before = (0, 0)
    for entry in {entry.step: entry for entry in entries}.values():
        step, k, batch = _stand(backend, entry)
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
    """Samples behind the run's newest checkpoint; None without a checkpoint. A run that began with another run's
    state is known to have trained only on the last of these samples. Raises StoreError or CorruptData.
    """
    newest = max(list_checkpoints(backend, run), key=lambda entry: (entry.step, entry.entry), default=None)
    if newest is None:
        return None
    meta = load_manifest(backend, newest).meta
    # A user's own trainer may have saved no train section: its run began at sample 0.
    stop, resume = next_sample(meta), meta["config"].get("train", {}).get("resume", "auto")
    return range(0 if resume in ("auto", "never") else max(stop - 1, 0), stop)


def _stand(backend: Backend, entry: CheckpointEntry) -> tuple[int, int, int]:
    """(steps taken, samples taken, rows of a step) at a checkpoint."""
    meta = load_manifest(backend, entry).meta
    batch = derive_batch(section(meta, "batch", BatchConfig), meta["world_size"])
    return meta["step"], next_sample(meta), batch.global_batch
