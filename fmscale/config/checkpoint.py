"""The section `checkpoint`: saves, their times and their retention."""

from dataclasses import dataclass

from fmscale.config.checks import InvalidField, at_least, at_most


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a run: at runs/RUN/checkpoints in the store."""

    every: int | None = 1000
    """Steps between saves; null saves by time, at a stop and at the end only."""
    every_seconds: float | None = None
    """Seconds between saves, by rank 0's clock, in addition to `every`."""
    keep_last: int = 3
    """Newest checkpoints that are kept. The last verified checkpoint is kept besides."""
    keep_every: int | None = None
    """Checkpoints at multiples of this number of steps are kept for good."""
    grace_seconds: float = 600.0
    """Seconds between retiring a checkpoint and deleting its files, for processes that still read them."""
    overlap: bool = True
    """Copy the state while the next forward and backward run; false copies before `save` returns."""
    buffers: int = 1
    """Snapshots of a rank's state in host memory. While all of them are being written, a due save is skipped."""
    incremental: bool = True
    """Refer to pieces that have not changed since the last checkpoint instead of writing them again."""
    complete_every: int = 10
    """Every n-th save, and every save that is kept for good, refers to no other checkpoint."""
    digests: bool = True
    """Record checksums: without them damage stays unseen. Give false only to measure their cost."""
    retries: int = 3
    """Times that writing is tried again before a save counts as failed; training goes on in any case."""
    seal_seconds: float = 1800.0
    """Seconds that rank 0's writer waits for the other ranks' files before the save counts as failed."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep_every", "complete_every")
        at_least(self, 1.0, "every_seconds", "seal_seconds")
        at_most(self, 1e9, "every_seconds", "seal_seconds", "grace_seconds")
        at_least(self, 1, "keep_last", hint="The last checkpoint is what a resume needs.")
        at_least(self, 0.0, "grace_seconds")
        at_least(self, 0, "retries")
        if self.buffers not in (1, 2):
            raise InvalidField(
                "buffers", "must be 1 or 2", found=self.buffers, remedy="Each takes the state's size in memory."
            )
