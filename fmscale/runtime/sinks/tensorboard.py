"""Metrics as event files of TensorBoard."""

from pathlib import Path

from fmscale.config.metrics import TensorBoardConfig
from fmscale.runtime.sinks.protocol import Ending, Record, RunInfo, numbers


class TensorBoardSink:
    """Scalars, each at its step and time."""

    def __init__(self, config: TensorBoardConfig, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(config.folder) if config.folder else run.folder / "tensorboard"
        # TensorBoard hides what older files have from this step on: this job takes these steps again.
        self._writer = SummaryWriter(str(folder), purge_step=run.first_step + 1)

    def step(self, record: Record) -> None:
        """Write the record's numbers."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record.get("step"), walltime=record["time"])

    event = step

    def close(self, outcome: Ending) -> None:
        """Write all that is pending."""
        self._writer.close()
