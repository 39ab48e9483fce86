"""Retirement of commits, pins, and garbage collection, safe beside concurrent writers.

Rules, all by place in the log and none by clock:

1. A `retire` entry takes commits out of use and names the objects that no other live commit references.
   These objects are dead from this entry on, for good, even while they are still stored.
2. A commit may not reference an object that is dead at the commit's place. `commit` re-checks each retire
   that was appended meanwhile and raises Conflict; the caller then writes these objects under new names.
3. A pinned commit cannot be retired, and a retired commit cannot be pinned; a retire leaves pinned commits live.

So no live commit references a dead object, and `collect_garbage` may delete dead objects at any time, beside
any writer. The grace time protects readers that still read a retired commit. References point at physical
objects of the same log: a commit lists every object that it needs, also objects of earlier commits.
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
    """State of commits and objects after the log's first `head` entries."""

    head: int = 0
    """Number of entries applied."""
    live: dict[int, LogEntry] = field(default_factory=dict)
    """Commits in use, by number."""
    pins: dict[int, set[str]] = field(default_factory=dict)
    """Owners of the pins of each pinned commit."""
    retires: list[LogEntry] = field(default_factory=list)
    """Retire entries, in order."""
    masks: list[LogEntry] = field(default_factory=list)
    """Mask entries, in order."""
    dead: KeySet = field(default_factory=KeySet)
    """Keys and folders that retires named."""
    withheld: set[str] = field(default_factory=set)
    """Objects of retired commits that live commits still referenced; a later retire names them."""

    def apply(self, entry: LogEntry) -> None:
        """Apply the entry at `head`."""
        assert entry.number == self.head, (entry.number, self.head)
        self.head += 1
        if entry.kind in COMMIT_KINDS:
            self.live[entry.number] = entry
        elif entry.kind == "pin":
            self._pin(entry.body["commits"], entry.body["owner"], entry.body["pinned"])
        elif entry.kind == "mask":
            self.masks.append(entry)
        elif entry.kind in ("retire", "back"):
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
    """State of the log now: `state` updated by newer entries, or a new state from the whole log."""
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

    Raises Conflict, with the names as its `found`, if some objects are dead or die meanwhile; nothing is
    appended then. Other errors as in Log.append. A `state` of the caller saves a second read of the log.
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
    back: Body | None = None,
) -> LogEntry:
    """Take commits out of use, durably, and name the objects that may be deleted after the grace time.

    The entry names the objects that only these commits reference, and `objects`: left-overs without any commit
    (of an abandoned ingest). With `back` its kind is back, and it has these facts too. Raises Conflict if a commit is
    pinned, unknown or already retired, or if a live commit needs some of `objects`; other errors as in Log.append.
    """
    numbers, leftovers = sorted(set(commits)), sorted(set(objects))
    state = replay(log, state)

    @cache
    def needs(number: int) -> list[str]:
        return list(references(state.live[number]))

    def body_now() -> Body:
        _require_live(state, numbers)
        pinned = {number: sorted(state.pins[number]) for number in numbers if number in state.pins}
        if pinned:
            raise Conflict(
                "pinned commits cannot be retired", found=pinned, remedy="Unpin them first, or leave them out."
            )
        live = KeySet(name for number in state.live if number not in numbers for name in needs(number))
        needed = [name for name in leftovers if live.touches(name)]
        if needed:
            raise Conflict(
                "a live commit needs these objects", found=needed, remedy="Retire the commits that reference them."
            )
        names = state.withheld.union(leftovers, *(needs(number) for number in numbers))
        return {
            "commits": numbers,
            "objects": sorted(name for name in names if not live.touches(name)),
            "withheld": sorted(name for name in names if live.touches(name)),
            "reason": reason,
            **(back or {}),
        }

    return append_anew(log, "retire" if back is None else "back", body_now, state, lease)


def pin(
    log: Log,
    commits: Iterable[int],
    owner: str,
    *,
    pinned: bool = True,
    lease: int | None = None,
    state: RetirementState | None = None,
) -> LogEntry:
    """Protect live commits from retirement until `owner` unpins them. Raises Conflict if a commit is not live."""
    numbers = sorted(set(commits))
    state = replay(log, state)

    def body_now() -> Body:
        _require_live(state, numbers)
        return {"commits": numbers, "owner": owner, "pinned": pinned}

    return append_anew(log, "pin", body_now, state, lease)


unpin = partial(pin, pinned=False)
"""Remove the owner's pins; pins of other owners stay. Errors as in `pin`."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Result of `collect_garbage`."""

    dry_run: bool
    """True if nothing was deleted."""
    retires: tuple[int, ...]
    """Retire entries whose grace time is over and whose objects this call handled."""
    waiting: tuple[int, ...]
    """Retire entries whose grace time is not over."""
    objects: tuple[str, ...]
    """Keys deleted, or to be deleted."""
    bytes: int
    """Total size of `objects`."""
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
    """Delete the objects that durable retires named at least `grace` seconds ago, and nothing else.

    A mark under PREFIX/collected records each retire whose objects are all deleted, so that later calls do not
    list them again. A killed call can be repeated, and several calls may run at once. `now` (seconds since the
    epoch) is this machine's clock; it is compared with the clock of the retire's writer, so `grace` should be
    much longer than the clocks' difference. A `state` of the caller saves a second read of the log. Raises the
    backend's StoreError.
    """
    now = time() if now is None else now
    state = replay(log, state)
    live = KeySet(name for entry in state.live.values() for name in references(entry))
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
        needed = {info.key for info in stored if live.touches(info.key)}
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
        return  # an earlier, killed call deleted it


def append_anew(
    log: Log, kind: str, body_now: Callable[[], Body], state: RetirementState, lease: int | None
) -> LogEntry:
    """Append the body that `body_now` makes, anew after each new entry of the log; `state` follows the log."""

    def recheck(newer: LogEntry) -> Body:
        state.apply(newer)
        return body_now()

    entry = log.append(kind, body_now(), lease=lease, recheck=recheck, base=state.head)
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
