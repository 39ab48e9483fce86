"""Leases: the right to write to a run's log. The log itself is the fence; no clock and no server take part.

Taking a lease appends a `lease` entry, which raises the log's count of leases by one. From then on an append
under an older lease fails with LeaseLost: if a job is requeued while its first process still hangs somewhere (a
zombie), the first process cannot commit any more. The newest holder always wins; no process waits.
"""

from dataclasses import dataclass

from fmscale.store.log.entry import LogEntry
from fmscale.store.log.log import LEASE, Body, Log


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write to a log until another process takes the lease."""

    log: Log
    number: int
    """Place among all leases of this log, from 1."""

    def append(self, kind: str, body: Body) -> LogEntry:
        """Append to the log under this lease, as in Log.append. Raises LeaseLost after a newer lease."""
        return self.log.append(kind, body, lease=self.number)


def acquire(log: Log, owner: str) -> Lease:
    """Take the lease of `log` from any holder; `owner` is job and host, for people.

    Raises the errors of Log.append.
    """
    return Lease(log=log, number=log.append(LEASE, {"owner": owner}).lease)
