"""The contract of a sink. Records are those of metrics.jsonl: of a `step` or an `event`, with the `time` of its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Record = Mapping[str, Any]
Ending = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run that a sink begins or continues."""

    name: str
    store: str
    """URL of its store, without credentials; with the name it identifies the run."""
    folder: Path
    """The run's folder on this machine."""
    config: Mapping[str, Any]
    """Its config as plain values."""
    first_step: int = 0
    """Steps before this job. The sink may have later steps too, from a job that was killed: they come again."""


class Sink(Protocol):
    """A place that records go to, open for one job of a run. A thread of its own calls it, so it may be slow.

    A class that `metrics.sinks` names as package.module:Name is a frozen dataclass with `open(self, run: RunInfo)`,
    which begins the run, or continues it, and returns a Sink.
    """

    def step(self, record: Record) -> None:
        """Take the record of a step."""

    def event(self, record: Record) -> None:
        """Take the record of an event; it may come before the records of earlier steps."""

    def close(self, outcome: Ending) -> None:
        """End the job."""


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name; an event's names begin with its own, such as checkpoint/durable_seconds."""
    prefix = f"{record['event']}/" if "event" in record else ""
    return {
        name if "/" in name else prefix + name: float(value)
        for name, value in record.items()
        if name not in ("time", "step") and isinstance(value, (int, float))
    }
