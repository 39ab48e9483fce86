"""The records of an hour, grouped by job and step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
MEASURED = frozenset({"pages", "ceilings", "variants", "row"})
"""Kinds of findings of which a job has several."""


@dataclass(kw_only=True)
class Run:
    """Records of a job, until its end or failure."""

    job: str
    """Its name."""
    step: str
    """Its step."""
    settings: Record = field(default_factory=dict)
    """Settings that differ between the runs of a step."""
    steps: list[Record] = field(default_factory=list)
    """Metrics of training steps."""
    saves: list[Record] = field(default_factory=list)
    """Checkpoints."""
    built: Record = field(default_factory=dict)
    """Memory with the model on the device, before the first step."""
    stepped: Record = field(default_factory=dict)
    """Memory between steps, with all remains of a step."""
    end: Record = field(default_factory=dict)
    """Observations at its completion; empty if it is incomplete."""
    measured: list[Record] = field(default_factory=list)
    """Measurements of a job that does not train: memory pages, variants and rows of kernels."""
    tests: dict[str, Record] = field(default_factory=dict)
    """Finished tests, by name."""
    collected: list[str] = field(default_factory=list)
    """Number of all tests."""
    outcome: Record = field(default_factory=dict)
    """End of the process; empty if the hour ended first."""

    @property
    def why(self) -> str:
        """Reason for a missing figure, in a line or two."""
        if not self.outcome:
            return "the hour ended before it did"
        lines = str(self.outcome.get("reason", "")).splitlines()
        return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]])) or "it said nothing of it"


@dataclass(kw_only=True)
class Hour:
    """Content of an hour's records."""

    begin: Record
    """Mode, machine, commit."""
    about: dict[str, Record] = field(default_factory=dict)
    """Findings of step 0: versions, deepspeed, corpus."""
    runs: dict[str, Run] = field(default_factory=dict)
    """Runs by job."""
    steps: dict[str, Record] = field(default_factory=dict)
    """Ends of steps."""
    end: Record = field(default_factory=dict)
    """Record of the hour's end; empty if it was killed."""

    def of(self, step: str) -> list[Run]:
        """The runs of a step that have records."""
        return [run for run in self.runs.values() if run.step == step]

    def why(self, step: str) -> str:
        """Reason for a step without a figure."""
        if step not in self.begin["steps"]:
            return f"step {step} was not asked for"
        ended = self.steps.get(step)
        if ended is None:
            return f"the hour ended before step {step} did"
        failed = next((run.why for run in self.of(step) if not run.outcome.get("ok", True)), "")
        return f"step {step} {ended['reason'] or 'handed over too little'}" + (f": {failed}" if failed else "")


def put_together(records: Sequence[Record]) -> Hour:
    """The hour of these records; the first record is its begin."""
    hour = Hour(begin=records[0])
    for record in records[1:]:
        kind = record["kind"]
        if kind == "end":
            hour.end = record
        elif kind == "step":
            hour.steps[record["step"]] = record
        else:
            run = hour.runs.setdefault(record["job"], Run(job=record["job"], step=record["step"]))
            if kind == "job":
                run.outcome = record
            else:
                _found(hour, run, record["found"])
    return hour


def _found(hour: Hour, run: Run, found: Record) -> None:
    about = found["about"]
    if about in ("settings", "built", "stepped", "end"):
        setattr(run, about, found)
    elif about == "steps":
        run.steps += found["steps"]
    elif about == "save":
        run.saves.append(found)
    elif about in MEASURED:
        run.measured.append(found)
    elif about == "test":
        known = run.tests.get(found["test"])
        if known is None or known["outcome"] == "passed":
            run.tests[found["test"]] = found
    elif about == "collected":
        run.collected = found["tests"]
    else:
        hour.about[about] = found
