"""Retirement of commits, pins, and garbage collection, safe beside concurrent writers.

Rules, all by place in the log and none by clock:

1. A `retire` entry takes commits out of use and names the objects that no other live commit references.
   They are dead from there on, for good, whether they are still stored or not.
2. A commit may not reference an object that is dead at the commit's place. `commit` re-checks each retire
   that was appended meanwhile and raises Conflict; the caller then writes these objects under new names.
3. A pinned commit cannot be retired, a retired one not pinned; a retire that ignores this has no effect.

So nothing that is dead is ever referenced by a live commit, and `collect_garbage` may delete dead objects at
any time, next to any writer. The grace time is for readers that still read a retired commit. References
point at physical objects of the same log: a commit says in full what it needs, whichever commit wrote it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from time import time

from fmscale.errors import Conflict, ObjectNotFound
from fmscale.store.backends.protocol import Backend, ObjectInfo
from fmscale.store.backends.write_once import store_once
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.keyset import KeySet
from fmscale.store.log.log import Body, Log

COMMIT_KINDS = frozenset({"commit", "checkpoint"})

References = Callable[[LogEntry], Iterable[str]]
"""Gives the keys and folders (ending in a slash) that a commit entry needs; called for live commits only."""


@dataclass(kw_only=True)
class RetirementState:
    """State of commits and objects after a log's entries below `head`."""

    head: int = 0
    """Number of entries taken into account."""
    live: dict[int, LogEntry] = field(default_factory=dict)
    """Commits in use, by number."""
    pins: dict[int, set[str]] = field(default_factory=dict)
    """Owners of the pins of each pinned commit."""
    retires: list[LogEntry] = field(default_factory=list)
    """Retire entries, in order."""
    dead: KeySet = field(default_factory=KeySet)
    """Keys and folders that retires named."""
    withheld: set[str] = field(default_factory=set)
    """Objects of retired commits that others still referenced; a later retire names them."""

    def apply(self, entry: LogEntry) -> None:
        """Take the entry at `head` into account."""
        assert entry.number == self.head, (entry.number, self.head)
        self.head += 1
        if entry.kind in COMMIT_KINDS:
            self.live[entry.number] = entry
        elif entry.kind == "pin":
            self._pin(entry.body["commits"], entry.body["owner"], entry.body["pinned"])
        elif entry.kind == "retire":
            self.retires.append(entry)
            for number in entry.body["commits"]:
                if number not in self.pins:
                    self.live.pop(number, None)
            for name in entry.body["objects"]:
                self.dead.add(name)
            self.withheld.update(entry.body["withheld"])
            self.withheld.difference_update(entry.body["objects"])

    def _pin(self, commits: list[int], owner: str, pinned: bool) -> None:
        for number in commits:
            owners = self.pins.setdefault(number, set()) if number in self.live else set()
            owners.add(owner) if pinned else owners.discard(owner)
            if not owners:
                self.pins.pop(number, None)


def replay(log: Log, state: RetirementState | None = None) -> RetirementState:
    """State of the log now, read from where `state` ends (which is brought up to date), else whole."""
    state = state or RetirementState()
    for entry in log.entries(state.head):
        state.apply(entry)
    return state


def commit(
    log: Log,
    kind: str,
    body: Body,
    objects: Iterable[str],
    *,
    lease: int | None = 0,
    state: RetirementState | None = None,
) -> LogEntry:
    """Append a commit that references `objects` (keys, and folders ending in a slash).

    Raises Conflict, with the names as its `found`, if some of them are dead or die meanwhile; nothing is
    appended then. Otherwise as Log.append. A `state` kept by the caller saves reading the log again.
    """
    names = list(objects)
    state = replay(log, state)

    def body_now() -> Body:
        dead = [name for name in names if state.dead.touches(name)]
        if dead:
            raise Conflict(
                "objects that this commit references were retired",
                found=dead,
                remedy="Write them again under new names and commit those.",
            )
        return body

    return append_anew(log, kind, body_now, state, lease)


def retire(
    log: Log,
    commits: Iterable[int],
    references: References,
    *,
    objects: Iterable[str] = (),
    reason: str = "",
    lease: int | None = None,
    state: RetirementState | None = None,
) -> LogEntry:
    """Take commits out of use, durably, and name what may be deleted after the grace time.

    Named are the objects that only these commits reference, and `objects`: left-overs that no commit ever
    referenced (of an ingest that was given up). Raises Conflict if a commit is pinned, unknown or already
    retired, or if a live commit needs one of `objects`; otherwise as Log.append.
    """
    wanted, leftovers = sorted(set(commits)), sorted(set(objects))
    state = replay(log, state)

    @cache
    def needs(number: int) -> list[str]:
        return list(references(state.live[number]))

    def body_now() -> Body:
        _require_live(state, wanted)
        pinned = {number: sorted(state.pins[number]) for number in wanted if number in state.pins}
        if pinned:
            raise Conflict(
                "pinned commits cannot be retired", found=pinned, remedy="Unpin them first, or leave them out."
            )
        kept = KeySet(name for number in state.live if number not in wanted for name in needs(number))
        needed = [name for name in leftovers if kept.touches(name)]
        if needed:
            raise Conflict(
                "a live commit needs these objects", found=needed, remedy="Retire the commits that reference them."
            )
        names = state.withheld.union(leftovers, *(needs(number) for number in wanted))
        return {
            "commits": wanted,
            "objects": sorted(name for name in names if not kept.touches(name)),
            "withheld": sorted(name for name in names if kept.touches(name)),
            "reason": reason,
        }

    return append_anew(log, "retire", body_now, state, lease)


def pin(
    log: Log,
    commits: Iterable[int],
    owner: str,
    *,
    pinned: bool = True,
    lease: int | None = None,
    state: RetirementState | None = None,
) -> LogEntry:
    """Keep live commits from being retired until `owner` unpins them. Raises Conflict if a commit is not live."""
    wanted = sorted(set(commits))
    state = replay(log, state)

    def body_now() -> Body:
        _require_live(state, wanted)
        return {"commits": wanted, "owner": owner, "pinned": pinned}

    return append_anew(log, "pin", body_now, state, lease)


unpin = partial(pin, pinned=False)
"""Take back the owner's pins; other owners' stay. Errors as in `pin`."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Result of `collect_garbage`."""

    dry_run: bool
    """True if nothing was deleted."""
    retires: tuple[int, ...]
    """Retire entries that were worked off."""
    waiting: tuple[int, ...]
    """Retire entries whose grace time is not over."""
    objects: tuple[str, ...]
    """Keys deleted, or to be deleted."""
    bytes: int
    """Their size together."""
    spared: tuple[str, ...]
    """Keys that a retire named although a live or pinned commit references them; never deleted."""


def collect_garbage(
    log: Log,
    references: References,
    *,
    grace: float,
    now: float | None = None,
    dry_run: bool = False,
    state: RetirementState | None = None,
) -> Garbage:
    """Delete what durable retires named at least `grace` seconds ago, and nothing else.

    A retire that is worked off completely is marked under PREFIX/collected, so that later runs do not list
    its objects again. Can be killed and run again, and run several times at once. `now` (seconds since the
    epoch) is this machine's clock, compared with the clock of the retire's writer: `grace` should be long
    against the difference. A `state` kept by the caller saves reading the log again. Raises StoreError as the
    backend does.
    """
    now = time() if now is None else now
    state = replay(log, state)
    kept = KeySet(name for entry in state.live.values() for name in references(entry))
    folder = f"{log.prefix}/collected"
    done = set(log.backend.list_names(folder))
    retires, waiting, doomed, spared = [], [], [], []
    for entry in state.retires:
        mark = f"{entry.number:012d}.json"
        if mark in done:
            continue
        if now - entry.time < grace:
            waiting.append(entry.number)
            continue
        retires.append(entry.number)
        stored = [info for name in entry.body["objects"] for info in _stored(log.backend, name)]
        needed = {info.key for info in stored if kept.touches(info.key)}
        spared.extend(sorted(needed))
        free = [info for info in stored if info.key not in needed]
        doomed += free
        if dry_run:
            continue
        for info in free:
            log.backend.delete(info.key)
        if not needed:
            store_once(log.backend, f"{folder}/{mark}", b"{}")
    return Garbage(
        dry_run=dry_run,
        retires=tuple(retires),
        waiting=tuple(waiting),
        objects=tuple(info.key for info in doomed),
        bytes=sum(info.bytes for info in doomed),
        spared=tuple(spared),
    )


def _stored(backend: Backend, name: str) -> Iterator[ObjectInfo]:
    if name.endswith("/"):
        yield from backend.list_objects(name)
        return
    try:
        yield backend.head(name)
    except ObjectNotFound:
        return  # an earlier run that was killed has deleted it


def append_anew(
    log: Log, kind: str, body_now: Callable[[], Body], state: RetirementState, lease: int | None
) -> LogEntry:
    """Append a body that is made, and may be refused, anew whenever the log went on; `state` goes along."""

    def on_other(other: LogEntry) -> Body:
        state.apply(other)
        return body_now()

    entry = log.append(kind, body_now(), lease=lease, recheck=on_other, base=state.head)
    state.apply(entry)
    return entry


def _require_live(state: RetirementState, commits: list[int]) -> None:
    gone = [number for number in commits if number not in state.live]
    if gone:
        raise Conflict(
            "no such commits are in use",
            found=gone,
            remedy=f"Commits in use: {sorted(state.live)[-20:]}; the others are retired or were never there.",
        )
