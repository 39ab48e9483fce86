"""The order log: mixture stages, bans and quarantines as entries of a run's log, and the plan they make.

The plan is what replaying the entries gives, on any rank, at any time: an entry is durable before any sample
that it changes is delivered. A new stage takes effect at a sample that no rank has prefetched yet; a
quarantine names the samples before that one which its writer must deliver now.
"""

from collections.abc import Iterable
from typing import Any

from fmscale.data.bans import Ban
from fmscale.data.mixture import FRAME
from fmscale.data.plan import Plan, Source, Stage, stage_json
from fmscale.data.view import View
from fmscale.errors import Conflict, DataError, FormatError
from fmscale.store.entry import Entry
from fmscale.store.log import Log

FORMAT_VERSION = 1
"""Version of the entries that are written; every version up to it is read."""


def start(log: Log, sources: Iterable[Source], *, Q: int = FRAME, epoch: int = 0) -> Plan:
    """Record the first stage of a run, from sample 0 on; the plan. Raises Conflict if the log has one."""
    stage = Plan([Stage(from_k=0, sources=tuple(sources))], Q).stages[0]

    def recheck(other: Entry) -> None:
        if other.kind == "stage":
            raise Conflict(
                "the run has its first stage already",
                found=f"log entry {other.number}",
                remedy="Replay the log and add a stage instead.",
            )

    log.append("stage", _stage_body(stage, set()) | {"Q": Q}, epoch=epoch, recheck=recheck, base=0)
    return _replayed(log)


def add_stage(log: Log, plan: Plan, from_k: int, sources: Iterable[Source], *, epoch: int = 0) -> Plan:
    """Record that these sources and weights hold from sample `from_k` on; the new plan.

    `from_k` must lie beyond what any rank has prefetched. Sources go on where they are then, new ones begin
    at 0. Raises ConfigError for weights or a `from_k` that cannot be, Conflict if another stage came first.
    """
    stage = plan.next_stage(from_k, sources)

    def recheck(other: Entry) -> None:
        if other.kind == "stage":
            raise Conflict(
                "another stage was added to the run meanwhile",
                found=f"log entry {other.number}, from sample {other.body['from_k']}",
                remedy="Replay the log and decide again.",
            )

    body = _stage_body(stage, {source.view.digest for source in plan.sources})
    log.append("stage", body, epoch=epoch, recheck=recheck, base=plan.log_head)
    return _replayed(log, plan)


def add_ban(log: Log, plan: Plan, ban: Ban, *, quarantine: bool = False, epoch: int = 0) -> Plan:
    """Record a ban, or a quarantine of damaged rows; the new plan, with what others recorded meanwhile.

    Raises DataError if the ban cannot be (see `Bans`), and then nothing is recorded.
    """
    plan.with_ban(ban)
    body = {"format_version": FORMAT_VERSION, **ban.to_json()}
    log.append("quarantine" if quarantine else "ban", body, epoch=epoch, base=plan.log_head)
    return _replayed(log, plan)


def replay(log: Log, *, head: int | None = None, plan: Plan | None = None) -> Plan | None:
    """The plan of the log's first `head` entries (None: all); None if they hold no stage.

    With a `plan` that came from the same log only what follows is read. Raises DataError if the log has
    fewer entries than `head`.
    """
    at = plan.log_head if plan else 0
    if head is not None and head < at:
        plan, at = None, 0
    if head is None or at < head:
        for entry in log.entries(at):
            if entry.number == head:
                break
            plan = apply(plan, entry)
            at = entry.number + 1
    if head is not None and at < head:
        raise DataError(
            f"the order log {log.prefix} is shorter than the state that refers to it",
            found=f"{at} entries, the state was taken at {head}",
            remedy="Resume from the run that the state belongs to.",
        )
    return plan and Plan(plan.stages, plan.Q, plan.bans, at)


def apply(plan: Plan | None, entry: Entry) -> Plan | None:
    """The plan after one more entry of the log. Kinds that do not concern the order change nothing."""
    head, body = entry.number + 1, entry.body
    if entry.kind not in ("stage", "ban", "quarantine"):
        return plan
    if body["format_version"] > FORMAT_VERSION:
        raise FormatError(
            f"log entry {entry.number} was written by a newer fmscale",
            found=body["format_version"],
            remedy="Upgrade fmscale here.",
        )
    if entry.kind == "stage":
        known = {source.view.digest: source.view for source in plan.sources} if plan else {}
        stage = _stage_from(body, known)
        return plan.with_stage(stage, head) if plan else Plan([stage], body["Q"], log_head=head)
    if plan is None:
        raise DataError(f"log entry {entry.number} bans rows before the run has a stage", found=entry.kind)
    fields = {name: value for name, value in body.items() if name != "format_version"}
    return plan.with_ban(Ban.from_json(fields), head)


def _replayed(log: Log, plan: Plan | None = None) -> Plan:
    new = replay(log, plan=plan)
    assert new is not None
    return new


def _stage_body(stage: Stage, known: set[str]) -> dict[str, Any]:
    """The entry of a stage; views that earlier entries do not hold are written out in full."""
    views = {s.view.digest: s.view.to_json() for s in stage.sources if s.view.digest not in known}
    return {"format_version": FORMAT_VERSION, **stage_json(stage), "views": views}


def _stage_from(body: dict[str, Any], known: dict[str, View]) -> Stage:
    views = known | {digest: View.from_json(value) for digest, value in body["views"].items()}
    wrong = [digest for digest, view in views.items() if view.digest != digest]
    if wrong:
        raise DataError("a recorded view does not match its digest", found=wrong)
    sources = tuple(Source(**{**source, "view": views[source["view"]]}) for source in body["sources"])
    return Stage(from_k=body["from_k"], sources=sources, positions=tuple(body["positions"]))
