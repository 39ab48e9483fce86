"""The order log: mixture stages, bans, quarantines and steps back as entries of a run's log, and the plan they make.

All ranks derive the same plan from the entries, at any time: an entry is durable before the delivery of any sample that
it changes (docs/order.md, "Bans and quarantine").
"""

from collections.abc import Iterable
from copy import copy
from threading import Lock
from typing import Any

import numpy as np

from fmscale.data.order.mixture import WEIGHT_ONE
from fmscale.data.plan.bans import Ban
from fmscale.data.plan.plan import Plan, Ranges, Source, Stage, stage_json
from fmscale.data.views.mask import find_documents
from fmscale.data.views.placement import merged, open_placement
from fmscale.data.views.view import View
from fmscale.errors import Conflict, DataError
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.log import Log
from fmscale.store.segments.seal import check_version

FORMAT_VERSION = 1
"""Version of new entries; older versions can be read."""
ORDER_KINDS = frozenset({"stage", "ban", "quarantine", "skip", "back"})
"""Kinds of entries that concern the order."""


class OrderLog:
    """A run's order log, and the plan of its entries; safe across threads."""

    def __init__(self, log: Log, *, lease: int | None = 0) -> None:
        """`lease`: number of the run's lease, under which entries are written. Reads the log."""
        self.log = log
        self.lease = lease
        self._plan = replay(log)
        self._lock = Lock()

    @property
    def begun(self) -> bool:
        """True once the run has a stage."""
        return self._plan is not None

    @property
    def plan(self) -> Plan:
        """The plan of all entries read so far. Raises DataError if the run has no stage yet."""
        if self._plan is None:
            raise DataError(
                f"the order log {self.log.prefix} has no stage: the run has not begun to read data",
                remedy="`fmscale train` records it when it begins; from Python, OrderLog.start does.",
            )
        return self._plan

    def refresh(self) -> Plan:
        """The plan with all entries recorded until now."""
        with self._lock:
            self._plan = replay(self.log, plan=self._plan)
            return self.plan

    def start(self, sources: Iterable[Source], excluded: Iterable[Ranges] = ()) -> Plan:
        """Record the first stage of a run, from sample 0 on. Raises Conflict if the run has a stage."""
        stage = Plan([Stage(from_k=0, sources=tuple(sources), excluded=tuple(excluded))]).stages[0]
        return self._append_stage(stage, set(), seen=0)

    def add_stage(self, from_k: int, sources: Iterable[Source], excluded: Iterable[Ranges] = ()) -> Plan:
        """Record a stage with these sources and weights from sample `from_k` on. Returns the new plan.

        `from_k` must lie beyond the samples that any rank has prefetched. Earlier sources continue at their positions,
        new sources begin at 0. `excluded` are rows of each source that the stage leaves out. Raises ConfigError for
        invalid weights or an invalid `from_k`, Conflict if another stage was added since the last read of the log.
        """
        stage = self.plan.next_stage(from_k, sources, excluded)
        digests = {source.view.digest for source in self.plan.sources}
        return self._append_stage(stage, digests, seen=self.plan.log_head)

    def ban(self, source: int, rows: Iterable[tuple[int, int]], from_k: int, reason: str = "") -> Plan:
        """Record a ban of ranges [first, stop) of rows from sample `from_k` on. Returns the new plan.

        Raises DataError for rows that cannot be banned (see `Bans`), and records nothing then.
        """
        return self._append_ban("ban", Ban(source=source, rows=tuple(rows), from_k=from_k, reason=reason))

    def ban_documents(self, dataset: Dataset, ids: Iterable[bytes], from_k: int, reason: str = "") -> Plan:
        """Record a ban of all rows with a token of these documents (16-byte ids) from `from_k` on, in every source of
        the dataset. Returns the new plan. Reads the dataset's document arrays.

        Raises DataError if no source has such a row.
        """
        document_ids, ranges = list(ids), {}
        for number, source in enumerate(self.plan.sources):
            if source.view.dataset == dataset.name:
                documents = find_documents(dataset, split=source.view.split, ids=document_ids, partial=True)
                ranges[number] = open_placement(dataset, source.view).rows_of(documents)
        if not any(ranges.values()):
            raise DataError(
                f"no source of the run has a row with these documents of dataset {dataset.name}",
                found=[document.hex() for document in document_ids[:3]],
                remedy="Check the ids and the dataset; what a view's mask leaves out needs no ban.",
            )
        for number, rows in ranges.items():
            if rows:
                self.ban(number, rows, from_k, reason)
        return self.plan

    def quarantine(
        self, *, source: int, rows: Ranges, from_k: int, samples: Iterable[int] = (), reason: str = ""
    ) -> Plan:
        """Record ranges [first, stop) of rows that cannot be used, and return the new plan. It excludes the rows from
        `from_k` on and for `samples`, which come earlier. The caller must not deliver them before.
        """
        ban = Ban(source=source, rows=rows, from_k=from_k, samples=tuple(samples), reason=reason)
        return self._append_ban("quarantine", ban)

    def _append_stage(self, stage: Stage, known: set[str], *, seen: int) -> Plan:
        """Append a stage, with the full JSON of views that earlier entries lack."""
        views = {s.view.digest: s.view.to_json() for s in stage.sources if s.view.digest not in known}
        body = {"format_version": FORMAT_VERSION, **stage_json(stage), "views": views}

        def recheck(other: LogEntry) -> None:
            if other.kind == "stage":
                raise Conflict(
                    "another stage was added to the run meanwhile",
                    found=f"log entry {other.number}, from sample {other.body['from_k']}",
                    remedy="Read the log again, then decide again.",
                )

        self.log.append("stage", body, lease=self.lease, recheck=recheck, base=seen)
        return self.refresh()

    def _append_ban(self, kind: str, ban: Ban) -> Plan:
        self.plan.with_ban(ban)
        body = {"format_version": FORMAT_VERSION, **ban.to_json()}
        self.log.append(kind, body, lease=self.lease, base=self.plan.log_head)
        return self.refresh()


def replay(log: Log, *, head: int | None = None, plan: Plan | None = None) -> Plan | None:
    """The plan of the log's first `head` entries (None: all); None if they hold no stage.

    With a `plan` from the same log, reads later entries only. Raises DataError if the log has fewer entries than
    `head`.
    """
    at = plan.log_head if plan else 0
    if head is not None and head < at:
        plan, at = None, 0
    entries: list[LogEntry] = []
    if head is None or at < head:
        for entry in log.entries(at):
            if entry.number == head:
                break
            entries.append(entry)
            at = entry.number + 1
    if head is not None and at < head:
        raise DataError(
            f"the order log {log.prefix} is shorter than the state that refers to it",
            found=f"{at} entries, the state was taken at {head}",
            remedy="Resume from the run that the state belongs to.",
        )
    entries = [entry for entry in entries if entry.kind in ORDER_KINDS]
    if plan is not None and not entries:
        moved = copy(plan)  # with its digest, which takes a second for the bans of 200 steps
        moved.log_head = at
        return moved
    stages = list(plan.stages) if plan else []
    bans = list(plan.bans) if plan else []
    skips, spikes = (plan.skips, plan.spikes) if plan else (frozenset[range](), 0)
    views = {source.view.digest: source.view for source in plan.sources} if plan else {}
    for entry in entries:
        check_version(entry.body, f"log entry {entry.number}", FORMAT_VERSION)
        body = {name: value for name, value in entry.body.items() if name != "format_version"}
        spikes += entry.kind in ("skip", "back")
        if entry.kind == "skip":
            skips |= {range(*body["samples"])}
            continue
        if entry.kind == "stage":
            stages.append(_stage_from(body, views))
            changed = stages[-1].from_k
        else:
            bans += map(Ban.from_json, body["bans"] if entry.kind == "back" else [body])
            changed = bans[-1].from_k
        # A step that gets other samples is judged anew.
        skips = frozenset(skip for skip in skips if skip.stop <= changed)
    return Plan(stages, bans, at, skips=skips, spikes=spikes) if stages else None


def bans_of(plan: Plan, samples: range, from_k: int, reason: str, dataset: str | None = None) -> list[Ban]:
    """Bans from `from_k` on of the rows that a plan gives to samples, in the sources of `dataset` alone if it is given.

    Raises DataError if none of the samples is of the dataset.
    """
    found = plan.samples(np.arange(samples.start, samples.stop, dtype=np.uint64))
    bans = []
    for number, source in enumerate(plan.sources):
        rows = np.unique(found.row[found.source == number]).tolist()
        if rows and dataset in (None, source.view.dataset):
            ranges = tuple(merged([(row, row + 1) for row in rows]))
            bans.append(Ban(source=number, rows=ranges, from_k=from_k, reason=reason))
    if not bans:
        raise DataError(
            f"no sample of the range is of dataset {dataset}",
            found=f"samples {samples.start} to {samples.stop - 1}",
            remedy=f"Datasets of the run: {', '.join(sorted({source.view.dataset for source in plan.sources}))}.",
        )
    return bans


def order_changes(plan: Plan) -> list[dict[str, Any]]:
    """Changes of an order since its first stage, in the order of the log: for people."""
    changes: list[dict[str, Any]] = []
    for stage in plan.stages[1:]:
        shares = ", ".join(f"{source.label} {source.weight / WEIGHT_ONE:.4g}" for source in stage.sources)
        changes.append({"from_sample": stage.from_k, "change": "stage", "of": shares, "reason": ""})
    for ban in plan.bans:
        rows = f"{sum(stop - first for first, stop in ban.rows)} rows of {plan.sources[ban.source].label}"
        kind = "quarantine" if ban.samples else "ban"
        changes.append({"from_sample": ban.from_k, "change": kind, "of": rows, "reason": ban.reason})
    return changes


def _stage_from(body: dict[str, Any], views: dict[str, View]) -> Stage:
    """The stage of an entry. Adds its views to `views`."""
    from fmscale.data.views.decode import decode_view  # a loader without a run reads no view from JSON

    for digest, value in body["views"].items():
        views[digest] = decode_view(value)
        if views[digest].digest != digest:
            raise DataError(
                "a recorded view does not match its digest",
                found=digest,
                remedy="The log entry was changed: restore it from a copy, or begin a new run.",
            )
    sources = tuple(Source(**{**source, "view": views[source["view"]]}) for source in body["sources"])
    excluded = tuple(tuple((first, stop) for first, stop in rows) for rows in body.get("excluded", ()))
    return Stage(from_k=body["from_k"], sources=sources, positions=tuple(body["positions"]), excluded=excluded)
