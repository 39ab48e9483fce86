"""Leases: the right to write to a run's log. The log itself is the fence; no clock and no server take part.

Taking a lease appends a `lease` entry, which raises the log's count of leases by one. From then on an append
under an older lease fails with LeaseLost, whatever the older holder believes: a job that was requeued while its first
process still hangs somewhere (a zombie) cannot commit any more. The newest holder always wins; nobody waits.
"""

from dataclasses import dataclass

from fmscale.store.log.entry import LogEntry
from fmscale.store.log.log import LEASE, Body, Log


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write to a log until somebody else takes it."""

    log: Log
    """The log that was leased."""
    number: int
    """Place among all leases ever taken of this log, from 1."""

    def append(self, kind: str, body: Body) -> LogEntry:
        """Append to the log under this lease; as Log.append. Raises LeaseLost when fenced."""
        return self.log.append(kind, body, lease=self.number)


def acquire(log: Log, owner: str) -> Lease:
    """Take the lease of `log`, from whoever holds it; `owner` is job and host, for people.

    Raises StoreError as Log.append does.
    """
    return Lease(log=log, number=log.append(LEASE, {"owner": owner}).lease)
