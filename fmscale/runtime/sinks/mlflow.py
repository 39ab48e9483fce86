"""Metrics in MLflow."""

import re

from fmscale.config.metrics import MlflowConfig
from fmscale.runtime.sinks.protocol import Ending, Record, RunInfo, numbers

STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
OTHER = re.compile(r"[^\w\-. :/]")
"""Characters that the name of a metric may not have there."""


class MlflowSink:
    """A run there, whose id is kept in the run's folder."""

    def __init__(self, config: MlflowConfig, run: RunInfo) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=config.tracking_uri)
        kept = run.folder / "mlflow_run_id"
        if kept.is_file():
            self._id = kept.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            there = self._client.get_experiment_by_name(config.experiment)
            experiment = there.experiment_id if there else self._client.create_experiment(config.experiment)
            self._id = self._client.create_run(experiment, run_name=config.name or run.name).info.run_id
            kept.write_text(f"{self._id}\n")
            self._client.log_dict(self._id, dict(run.config), "config.json")
        self._last = self._client.get_run(self._id).data.metrics.get("step", 0)

    def step(self, record: Record) -> None:
        """Log the record's numbers, unless an earlier job has logged this step."""
        if record["step"] > self._last:
            self.event(record)

    def event(self, record: Record) -> None:
        from mlflow.entities import Metric

        when, step = int(record["time"] * 1000), record.get("step", 0)
        values = numbers(record) if "event" in record else {**numbers(record), "step": step}
        metrics = [Metric(OTHER.sub("_", name), value, when, step) for name, value in values.items()]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, outcome: Ending) -> None:
        self._client.set_terminated(self._id, status=STATUS[outcome])
