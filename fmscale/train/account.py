"""Account of a run from the records in its folder: its attempts, its events, and where its time went.

A run may still go on, or have been killed: records are read as far as they are whole. Nothing here imports torch.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from fmscale.errors import ConfigError, FormatError
from fmscale.runtime.sinks.jsonl import read_jsonl

Record = Mapping[str, Any]

PARTS = {
    "compute": "forward, backward and optimizer of steps that count, with all that has no part of its own",
    "data stall": "steps waited for data",
    "checkpoint": "training waited for saves: at their begin, at the fence, and at the end for the last to be durable",
    "evaluation": "held-out losses and answers",
    "repeated": "steps whose state was lost, and which a later attempt took again",
    "start": "from the moment at which the ranks join until the first step: meeting, opening, restore, compile",
    "down": "from the last step on record of an attempt that was lost until the ranks join again, imports included",
}
"""Part of a run's time -> its definition. The first part is goodput."""


@dataclass(kw_only=True)
class Attempt:
    """One start of a run, until its end, its failure or a kill."""

    began: float | None
    """Time at which its ranks joined the run; None in records of before, which lack the event `started`."""
    steps: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    repeated: int = 0
    """Its steps that an earlier attempt has on record too."""

    def of(self, *kinds: str) -> list[Record]:
        """Its events of some kinds."""
        return [event for event in self.events if event["event"] in kinds]

    @property
    def end(self) -> float:
        """Time of its last record; of its last step, if it has neither end nor failure on record."""
        last = self.steps[-1:] if self.steps and not self.of("reads") else [*self.steps[-1:], *self.events[-1:]]
        return max((number(record, "time") for record in last), default=self.began or 0.0)


@dataclass(frozen=True, kw_only=True)
class Account:
    """A run as its records tell it."""

    name: str
    steps: list[Record]
    """Records of the steps in order, each step once: the later record of a step that was taken again."""
    attempts: list[Attempt]
    seconds: Mapping[str, float]
    """Seconds of each of PARTS."""
    failure: Record | None
    """error.json, if there is one."""
    notes: list[str]
    """Facts that a reader needs to judge the rest."""

    @property
    def unit(self) -> str:
        """Name of the things that the objective counts, such as tokens."""
        rates = [name for name in self.steps[0] if name.endswith("_per_second")] if self.steps else []
        return rates[0].removesuffix("_per_second") if rates else "tokens"

    @property
    def goodput(self) -> float:
        """Share of the run's time in which steps that count were computed."""
        total = sum(self.seconds.values())
        return self.seconds["compute"] / total if total else 0.0

    def events(self, *kinds: str) -> list[Record]:
        """Events of some kinds, of all attempts in order."""
        return [event for attempt in self.attempts for event in attempt.of(*kinds)]


def number(record: Record, name: str) -> float:
    """A number of a record, also one that JSON lacks; NaN where there is none."""
    try:
        return float(record[name])
    except (KeyError, TypeError, ValueError):
        return math.nan


def read_account(folder: Path) -> Account:
    """Read a run's folder. Raises ConfigError for a folder that is none."""
    path = folder / "metrics.jsonl"
    records: list[Record] = []
    notes = []
    try:
        for record in read_jsonl(path):
            if not math.isnan(number(record, "time")) and ("event" in record or isinstance(record.get("step"), int)):
                records.append(record)
    except FormatError as error:
        notes.append(f"The records are read up to a line that is damaged: {error.cause}.")
    except OSError as error:
        raise ConfigError(
            "no metrics of a run here",
            found=f"{path}: {error.strerror}",
            remedy="Name the folder that `fmscale train` writes to: train.folder/train.run, such as runs/demo.",
        ) from error
    if not records:
        raise ConfigError(
            "the metrics have no record yet",
            found=notes[0] if notes else str(path),
            remedy="Look again after the first steps; they are written every train.log_every steps.",
        )
    attempts = _attempts(records)
    later: dict[int, Record] = {}
    for attempt in attempts:
        attempt.repeated = sum(record["step"] in later for record in attempt.steps)
        later |= {record["step"]: record for record in attempt.steps}
    if any(attempt.began is None for attempt in attempts):
        notes.append("Records of an earlier version lack the begin of starts, which is down time or in no part.")
    if any("seconds" not in event for attempt in attempts for event in attempt.of("evaluation")):
        notes.append("Records of an earlier version lack the seconds of evaluations: these count as compute.")
    return Account(
        name=folder.resolve().name,
        steps=[later[step] for step in sorted(later)],
        attempts=attempts,
        seconds=_spent(attempts, later),
        failure=_failure(folder),
        notes=notes,
    )


def _attempts(records: Iterable[Record]) -> list[Attempt]:
    """Records by attempt. Where `started` is missing, a resume or a step number that falls begins another."""
    attempts: list[Attempt] = []
    for record in records:
        kind = record.get("event")
        taken = attempts[-1].steps if attempts else []
        again = kind is None and taken and record["step"] <= taken[-1]["step"]
        if not attempts or kind == "started" or again or (kind == "resumed" and taken):
            attempts.append(Attempt(began=number(record, "began") if kind == "started" else None))
        (attempts[-1].steps if kind is None else attempts[-1].events).append(record)
    return attempts


def _spent(attempts: Sequence[Attempt], later: Mapping[int, Record]) -> dict[str, float]:
    """Seconds of each of PARTS. A step's record has the longest wait of any rank; an evaluation or save after a step
    is part of the next step's time, and of the end behind the last step.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    before: float | None = None
    for attempt in attempts:
        first = attempt.steps[0] if attempt.steps else None
        trains = attempt.end if first is None else number(first, "time") - number(first, "seconds")
        begins = trains if attempt.began is None else attempt.began
        spent["start"] += max(0.0, trains - begins)
        spent["down"] += 0.0 if before is None else max(0.0, begins - before)
        before = attempt.end
        evaluated: dict[Any, float] = {}
        for event in attempt.of("evaluation", "generations"):
            evaluated[event.get("step")] = evaluated.get(event.get("step"), 0.0) + _known(event, "seconds")
        for record in attempt.steps:
            seconds, looked = _known(record, "seconds"), evaluated.pop(record["step"] - 1, 0.0)
            if later[record["step"]] is not record:
                spent["repeated"] += seconds
                continue
            parts = {"data stall": _known(record, "data_stall"), "checkpoint": _known(record, "ckpt_blocking")}
            for name, part in (*parts.items(), ("evaluation", looked)):
                spent[name] += min(part, seconds)
            spent["compute"] += max(0.0, seconds - sum(parts.values()) - looked)
        if attempt.steps:
            rest = attempt.end - number(attempt.steps[-1], "time")
            looked = min(rest, sum(evaluated.values()))
            spent["evaluation"] += looked
            spent["checkpoint"] += rest - looked
    return spent


def _known(record: Record, name: str) -> float:
    value = number(record, name)
    return value if math.isfinite(value) else 0.0


def _failure(folder: Path) -> Record | None:
    """The report of the rank that failed first; None if there is none, or no whole one."""
    with suppress(OSError, ValueError, RecursionError):
        report = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        return report if isinstance(report, dict) else None
    return None


class Told(NamedTuple):
    """An event in words."""

    time: float
    step: int | None
    event: str
    detail: str
    trouble: bool = False


def told_events(account: Account) -> Iterator[Told]:
    """All that happened to a run, in order within each attempt; saves in a row are one event."""
    for i, attempt in enumerate(account.attempts):
        yield from _told_start(attempt)
        for kind, group in groupby(attempt.of("checkpoint", "failed", "reads", "initialised"), _kind):
            events = list(group)
            yield from [_told_saves(events)] if kind == "saved" else (_told(event, kind) for event in events)
        missed = [record["step"] for record in attempt.steps if record.get("applied") is False]
        if missed:
            detail = f"steps that changed nothing, as their gradients were not finite: {len(missed)}"
            yield Told(attempt.end, missed[0], "not applied", detail, True)
        if i + 1 < len(account.attempts) and not attempt.of("reads", "failed"):
            detail = "its end is not on record: it was killed, or its machine"
            yield Told(attempt.end, attempt.steps[-1]["step"] if attempt.steps else None, "lost", detail, True)
    failure, last = account.failure, account.attempts[-1]
    if failure is not None and not last.of("failed"):
        where = f"rank {failure.get('rank')} on {failure.get('host')} in {failure.get('phase')}: {failure.get('cause')}"
        yield Told(number(failure, "time"), failure.get("step"), "failed", where, True)


def _kind(event: Record) -> str:
    saved = event["event"] == "checkpoint" and event.get("state") == "acknowledged"
    return "saved" if saved else str(event["event"])


def _told_start(attempt: Attempt) -> Iterator[Told]:
    again = f"; steps taken again: {attempt.repeated}" if attempt.repeated else ""
    started, resumed = attempt.of("started"), attempt.of("resumed")
    ranks = started[0].get("world_size") if started else None
    place = f"{ranks} {'rank' if ranks == 1 else 'ranks'}, {started[0].get('device')}" if started else ""
    if started or not resumed:
        at = attempt.began or min(number(r, "time") for r in (*attempt.steps[:1], *attempt.events[:1]))
        yield Told(at, None, "started", place + ("" if resumed else again))
    for event in resumed:
        then, now = event.get("world_size_then"), event.get("world_size")
        moved = f", {then} → {now} ranks" if then != now else ""
        over = "".join(f"; passed over {text}" for text in event.get("passed_over") or ())
        where = f"from step {event.get('step')} of {event.get('run')}"
        yield Told(number(event, "time"), event.get("step"), "resumed", f"{where}{moved}{again}{over}", bool(over))


def _told_saves(events: Sequence[Record]) -> Told:
    lags = [number(event, "durable_seconds") for event in events]
    first, last = events[0].get("step"), events[-1].get("step")
    which = f"{len(events)} saves, steps {first} to {last}, " if len(events) > 1 else ""
    span = f"{min(lags):.2f}" if len(lags) == 1 else f"{min(lags):.2f} to {max(lags):.2f}"
    return Told(number(events[-1], "time"), last, "saved", f"{which}durable after {span} s")


def _told(event: Record, kind: str) -> Told:
    """An event that is neither a start nor a save that succeeded."""
    at, step = number(event, "time"), event.get("step")
    match kind:
        case "checkpoint":
            return Told(at, step, f"save {event.get('state')}", str(event.get("reason", "")), True)
        case "failed":
            return Told(at, step, kind, f"{event.get('type')}: {event.get('cause')}", True)
        case "initialised":
            return Told(at, 0, kind, f"weights of {event.get('address')}")
    return Told(at, step, str(event.get("outcome", "ended")), "")
