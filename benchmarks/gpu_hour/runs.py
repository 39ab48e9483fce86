"""The records of an hour, put together again by job and step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass(kw_only=True)
class Run:
    """What a job handed over, as far as it came."""

    job: str
    """Its name."""
    step: str
    """The step it is part of."""
    settings: Record = field(default_factory=dict)
    """What the runs of a step differ in."""
    steps: list[Record] = field(default_factory=list)
    """Metrics of training steps."""
    saves: list[Record] = field(default_factory=list)
    """Checkpoints."""
    built: Record = field(default_factory=dict)
    """Memory when the model was on the device and no step had been taken."""
    stepped: Record = field(default_factory=dict)
    """Memory between steps, with all that a step leaves."""
    end: Record = field(default_factory=dict)
    """What was seen when it was complete; empty if it did not get there."""
    tests: dict[str, Record] = field(default_factory=dict)
    """Tests that ended, by name."""
    collected: list[str] = field(default_factory=list)
    """Tests that there are."""
    outcome: Record = field(default_factory=dict)
    """How the process ended; empty if the hour ended first."""

    @property
    def why(self) -> str:
        """Why it has no figure, in a line or two."""
        if not self.outcome:
            return "the hour ended before it did"
        lines = str(self.outcome.get("reason", "")).splitlines()
        return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]])) or "it said nothing of it"


@dataclass(kw_only=True)
class Hour:
    """All that an hour's records say."""

    begin: Record
    """Mode, machine, commit."""
    about: dict[str, Record] = field(default_factory=dict)
    """What step 0 found: versions, deepspeed, corpus."""
    runs: dict[str, Run] = field(default_factory=dict)
    """By job."""
    steps: dict[str, Record] = field(default_factory=dict)
    """How steps ended."""
    end: Record = field(default_factory=dict)
    """Empty if it was killed."""

    def of(self, step: str) -> list[Run]:
        """The runs of a step that handed over anything."""
        return [run for run in self.runs.values() if run.step == step]

    def why(self, step: str) -> str:
        """Why a step has no figure."""
        if step not in self.begin["steps"]:
            return f"step {step} was not asked for"
        ended = self.steps.get(step)
        if ended is None:
            return f"the hour ended before step {step} did"
        failed = next((run.why for run in self.of(step) if not run.outcome.get("ok", True)), "")
        return f"step {step} {ended['reason'] or 'handed over too little'}" + (f": {failed}" if failed else "")


def put_together(records: Sequence[Record]) -> Hour:
    """The hour of its records, the first of which is its begin."""
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
    elif about == "test":
        known = run.tests.get(found["test"])
        if known is None or known["outcome"] == "passed":
            run.tests[found["test"]] = found
    elif about == "collected":
        run.collected = found["tests"]
    else:
        hour.about[about] = found
