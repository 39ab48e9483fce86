"""Leases: the right to write to a run's log. The log itself is the fence; no clock and no server take part.

Taking a lease appends a `lease` entry, which raises the log's count of leases by one. From then on an append
under an older lease fails with LeaseLost, whatever the older holder believes: a job that was requeued while its first
process still hangs somewhere (a zombie) cannot commit any more. The newest holder always wins; nobody waits.
"""

from dataclasses import dataclass

from fmscale.store.log.entry import LogEntry
from fmscale.store.log.log import LEASE, Body, Log, Recheck


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write to a log until somebody else takes it."""

    log: Log
    """The log that was leased."""
    number: int
    """Place among all leases ever taken of this log, from 1."""
    owner: str
    """Holder, for people: job and host."""
    base: int
    """Number of entries up to and including the lease: all that earlier holders wrote is below."""

    def append(self, kind: str, body: Body, *, recheck: Recheck | None = None, base: int | None = None) -> LogEntry:
        """Append to the log under this lease; as Log.append. Raises LeaseLost when fenced."""
        return self.log.append(kind, body, lease=self.number, recheck=recheck, base=base)

    def check(self) -> None:
        """Raise LeaseLost if somebody else holds the log by now; an early warning, not a guard."""
        newest = self.log.entry(self.log.head() - 1)
        if newest.lease > self.number:
            raise self.log.lost(f"lease {self.number} of {self.owner}", newest.lease)


def acquire(log: Log, owner: str) -> Lease:
    """Take the lease of `log`, from whoever holds it. Raises StoreError as Log.append does."""
    entry = log.append(LEASE, {"owner": owner})
    return Lease(log=log, number=entry.lease, owner=owner, base=entry.number + 1)
