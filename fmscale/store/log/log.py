"""The commit log: numbered entries, each created by put-if-absent. Nothing else makes data visible (P3).

Protocol (numbered log as in Delta Lake; write id and read-back as in Icechunk design document 017):
a writer reads the newest entry n-1 and creates entry n. If entry n exists already, the writer reads it back: the
writer's own uuid means that an earlier response was lost and the append is done; another uuid means a lost
race. Only a writer that has read n-1 creates n, so there are no gaps. The writer knows the whole log below n, so
the log itself is a fence: an entry counts the leases so far, and after a newer lease every append under an
older lease fails. No clock takes part.
"""

import os
import re
import socket
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import time
from typing import Any
from uuid import uuid4

from fmscale.errors import CorruptData, LeaseLost, ObjectNotFound, StoreError, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.entry import LogEntry, decode, encode

DATASET_KINDS = frozenset({"commit", "retire", "pin", "mask"})
RUN_KINDS = frozenset({"commit", "retire", "pin", "lease", "stage", "ban", "quarantine", "skip", "back", "checkpoint"})

# Attempts of the whole exchange; the backend has retried each request until its deadline before.
ATTEMPTS = 4
ENTRY = re.compile(r"\d{12}\.json")
LEASE = "lease"
MAX_WINDOW = 32

Body = dict[str, Any]
Recheck = Callable[[LogEntry], Body | None]


class Log:
    """A log of entries at PREFIX/log/000000000000.json and so on. Safe across threads and processes."""

    def __init__(self, backend: Backend, prefix: str, kinds: frozenset[str], *, readers: int = 16) -> None:
        """`kinds` are the kinds of entries that this log takes and reads; `readers` threads read a long log."""
        self.backend = backend
        self.prefix = prefix.rstrip("/")
        self.kinds = kinds
        self._readers = readers
        self._lock = Lock()
        self._newest: LogEntry | None = None
        self._known = 0
        self._checked = False

    def key(self, number: int) -> str:
        """Key of entry `number`."""
        return f"{self.prefix}/log/{number:012d}.json"

    def entry(self, number: int) -> LogEntry:
        """Entry `number`. Raises ObjectNotFound if it is missing, CorruptData, FormatError."""
        key = self.key(number)
        return self._note(decode(self.backend.get(key), key, number, self.kinds))

    def head(self) -> int:
        """Number of entries, without listing: one request if nothing was added since the last call,
        else doubling and then halving steps. Raises CorruptData if an entry is missing.
        """
        low = high = start = self._known
        step = 1
        while self._exists(high):
            low, high, step = high + 1, high + 1 + step, step * 2
        low += bisect_left(range(low, high), True, key=lambda number: not self._exists(number))
        if (low > start or start == 0) and self._exists(low + 1) and not self._exists(low):
            raise self._gap(low)
        with self._lock:
            self._known = max(self._known, low)
            return self._known

    def begun(self) -> bool:
        """True if the log has an entry, even without its first: one listing, or no request if an entry is known."""
        return self._known > 0 or bool(self._listed())

    def check(self) -> int:
        """Number of entries, by one listing. Raises CorruptData if an entry is missing before another that is listed or
        that this object knows. The first append calls it: readers may take a long gap for the end of the log.
        """
        listed = self._listed()
        count = max(self._known, *(number + 1 for number in listed), 0)
        for number in range(count):
            if number not in listed and not self._exists(number):  # a listing beside two appends may lack the earlier
                raise self._gap(number)
        with self._lock:
            self._known, self._checked = max(self._known, count), True
            return self._known

    def _listed(self) -> set[int]:
        names = self.backend.list_names(f"{self.prefix}/log")
        return {int(name[:12]) for name in names if ENTRY.fullmatch(name)}

    def entries(self, start: int = 0) -> Iterator[LogEntry]:
        """Entries from `start` on, in order, up to the newest.

        Reads entries in doubling windows, in parallel. Raises CorruptData for an entry that is damaged,
        is missing before a later entry, or does not follow from the entry before it.
        """
        # On a remote store four requests at once cost as much as one; on a disk threads cost more than they save.
        near = self.backend.local_path(self.key(0)) is not None
        number, window, alone = start, 2 if near else 4, 4 if near else 1
        before: LogEntry | None = None
        with ThreadPoolExecutor(self._readers) as pool:
            while True:
                numbers = range(number, number + window)
                several = pool.map if self._readers > 1 and window > alone else map
                results = list(several(self._find, numbers))
                for offset, entry in enumerate(results):
                    # For the window's last number, one more request tells the log's end from a gap.
                    rest = results[offset + 1 :]
                    later = any(rest) if rest or entry else self._exists(number + 1)
                    if entry is None and (later or number < self._known):
                        entry = self._find(number)  # appended during the window's reads, or a gap
                        if entry is None:
                            raise self._gap(number)
                    if entry is None:
                        return
                    if before is not None and entry.previous != before.digest:
                        raise CorruptData(
                            f"log entry {self.key(number)} does not follow from the one before it",
                            found=f"previous {entry.previous}, but that entry is {before.digest}",
                            remedy="An entry was replaced; restore the log from a copy of the store.",
                        )
                    yield entry
                    before = entry
                    number += 1
                window = min(2 * window, MAX_WINDOW)

    def append(
        self,
        kind: str,
        body: Body,
        *,
        lease: int | None = 0,
        recheck: Recheck | None = None,
        base: int | None = None,
        skippable: bool = False,
    ) -> LogEntry:
        """Add an entry; it is durable and visible to everyone when this returns.

        `lease` is the number of the caller's lease, 0 for a log without leases; None writes without a lease and
        passes every fence (a person's pin). `recheck` gets, in order, each entry that the caller had not read
        when it made the body: entries from number `base` on (by default entries after the newest that this Log
        has read). `recheck` may raise an error, so that nothing is written, or return a body to write instead.
        `skippable` lets readers skip the entry if they do not know its kind.

        Raises LeaseLost for a lost lease, StoreError for an unknown kind, StoreUnavailable if the outcome
        stayed unknown (the log holds the whole entry or nothing of it), and the errors of `check` and `recheck`.
        """
        if kind not in self.kinds:
            raise StoreError(
                f"the log {self.prefix} takes no entries of this kind",
                found=kind,
                remedy=f"Use one of {', '.join(sorted(self.kinds))}.",
            )
        uuid = uuid4().hex
        writer = f"{socket.gethostname()}:{os.getpid()}"
        if base is not None and base > self._known:
            self.entry(base - 1)  # another Log of the caller has read further than this Log
        last = self._last()
        seen = _count(last) if base is None else base
        while True:
            if seen < _count(last):
                for last in self.entries(seen):
                    change = recheck(last) if recheck else None
                    body = body if change is None else change
                seen = _count(last)
            draft = LogEntry(
                log=self.prefix,
                number=seen,
                kind=kind,
                uuid=uuid,
                time=time(),
                lease=self._lease_for(kind, lease, last),
                body=body,
                writer=writer,
                previous=last.digest if last else "",
                digest="",
            )
            holder = self._create(seen, encode(draft, skippable=skippable))
            if holder.uuid == uuid:
                return holder
            last = holder

    def _create(self, number: int, data: bytes) -> LogEntry:
        """Try to store `data` as entry `number`; returns the entry that then holds the number.

        Repeats use the same number and bytes until the holder is known: a request that seemed lost may still
        arrive, and then the number must be taken or the request must create this very entry.
        """
        key = self.key(number)
        failure: StoreUnavailable | None = None
        for _ in range(ATTEMPTS):
            try:
                if self.backend.put_if_absent(key, data):
                    return self._note(decode(data, key, number, self.kinds))
            except StoreUnavailable as error:
                failure = error
            try:
                holder = self._find(number)
            except StoreUnavailable as error:
                failure = error
                continue
            if holder is not None:
                return holder
        raise StoreUnavailable(
            f"it stayed unknown whether log entry {key} was written; if it was, it is whole",
            found=failure.cause if failure else "refused as existing, but not there",
            remedy="Check the store; then read the log before doing the same again.",
        ) from failure

    def _lease_for(self, kind: str, lease: int | None, last: LogEntry | None) -> int:
        """Number of the lease in an entry after `last`."""
        fence = last.lease if last else 0
        if kind == LEASE:
            return fence + 1
        if lease is not None and lease < fence:
            raise LeaseLost(
                f"the log {self.prefix} is held by a newer run",
                found=f"lease {lease}, the log is at {fence}",
                remedy="Another process took over (a requeued job?); let it go on and end this one.",
            )
        if lease is not None and lease > fence:
            raise StoreError(
                f"the log {self.prefix} never gave out this lease",
                found=f"lease {lease}, the log is at {fence}",
                remedy="Take the lease from this log first.",
            )
        return fence

    def _last(self) -> LogEntry | None:
        """The newest entry that this object knows, after a check of the log."""
        if not self._checked:
            self.check()
        if self._known > _count(self._newest):
            return self.entry(self._known - 1)
        return self._newest

    def _find(self, number: int) -> LogEntry | None:
        try:
            return self.entry(number)
        except ObjectNotFound:
            return None

    def _note(self, entry: LogEntry) -> LogEntry:
        """Remember the entry if it is the newest so far; returns it."""
        with self._lock:
            self._known = max(self._known, entry.number + 1)
            if self._newest is None or self._newest.number < entry.number:
                self._newest = entry
        return entry

    def _exists(self, number: int) -> bool:
        return self.backend.exists(self.key(number))

    def _gap(self, number: int) -> CorruptData:
        return CorruptData(
            f"log entry {self.key(number)} is missing although later ones exist",
            found=f"{self._known} entries known",
            remedy="Entries are never deleted; restore this object from a copy of the store.",
        )


def _count(last: LogEntry | None) -> int:
    return last.number + 1 if last else 0
