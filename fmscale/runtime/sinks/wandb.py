"""Metrics in Weights & Biases."""

from hashlib import sha256

from fmscale.config.metrics import WandbConfig
from fmscale.runtime.sinks.protocol import Ending, Record, RunInfo, numbers


class WandbSink:
    """A run there, whose id follows from the store and the name of the run."""

    def __init__(self, config: WandbConfig, run: RunInfo) -> None:
        import wandb

        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run.name,
            id=sha256(f"{run.store}#{run.name}".encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            allow_val_change=True,
            mode=config.mode,
            settings=wandb.Settings(console="off"),
        )
        # An axis of our own: wandb refuses a step below its last, and events come before the steps of their flush.
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("step", summary="max")
        self._last = int(self._run.summary.get("step", 0))

    def step(self, record: Record) -> None:
        """Log the record's numbers, unless an earlier job has logged this step."""
        if record["step"] > self._last:
            self.event(record)

    def event(self, record: Record) -> None:
        self._run.log({**numbers(record), "step": record.get("step", 0), "_timestamp": record["time"]})

    def close(self, outcome: Ending) -> None:
        """Send all that is pending, and end the run there."""
        self._run.finish(exit_code=int(outcome == "failed"))
