"""Rows excluded from a given sample on: bans by users, quarantine of damaged chunks.

The row that σ leads to next replaces a banned row, in the same epoch (docs/order.md, "Bans and quarantine").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.data.order.order import Orders
from fmscale.errors import DataError

_NEVER = np.uint64(2**64 - 1)
_NO_ENTRY = 2**62


@dataclass(frozen=True, kw_only=True)
class Ban:
    """One ban or quarantine entry of an order log."""

    source: int
    """Index into the plan's sources."""
    rows: tuple[tuple[int, int], ...]
    """Ranges [first, stop) of row ids of the source's view."""
    from_k: int
    """First sample that excludes the rows; all later samples exclude them too."""
    samples: tuple[int, ...] = ()
    """Samples below `from_k` that exclude the rows too, because a rank must deliver these samples now. Entries up
    to this entry decide their substitutes.
    """
    reason: str = ""
    """Reason, for people."""

    def to_json(self) -> dict[str, Any]:
        """The entry's body."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Ban":
        """The entry from a body."""
        rows = tuple((int(first), int(stop)) for first, stop in body["rows"])
        return cls(**{**body, "rows": rows, "samples": tuple(body["samples"])})


class _Table:
    """Bans of one source: disjoint pieces of its rows, each with the samples for which it is banned."""

    def __init__(self, bans: Sequence[tuple[int, Ban]], rows: int) -> None:
        pairs = [np.array(ban.rows, dtype=np.uint64) for _, ban in bans]
        ends = np.unique(np.concatenate([np.zeros(1, dtype=np.uint64), *(each.ravel() for each in pairs)]))
        self._starts = ends
        # A row is banned for k if an entry with the row has from_k <= k, or a number up to the number of the last
        # entry that lists k. So each piece needs its least from_k and its least number alone.
        self._from = np.full(len(ends), _NEVER, dtype=np.uint64)
        self._number = np.full(len(ends), _NO_ENTRY, dtype=np.int64)
        for (number, ban), each in zip(bans, pairs, strict=True):
            low, high = np.searchsorted(ends, each).T
            begun = np.zeros(high.max() - low.min() + 1, dtype=np.int64)
            np.add.at(begun, low - low.min(), 1)
            np.add.at(begun, high - low.min(), -1)
            named = low.min() + np.flatnonzero(np.cumsum(begun) > 0)
            self._from[named] = np.minimum(self._from[named], np.uint64(ban.from_k))
            self._number[named] = np.minimum(self._number[named], number)
        last_entry: dict[int, int] = {}
        for number, ban in bans:
            last_entry.update(dict.fromkeys(ban.samples, number))
        self._listed = np.array(sorted(last_entry), dtype=np.uint64)
        self._last = np.array([last_entry[k] for k in sorted(last_entry)] + [-1], dtype=np.int64)
        banned = self._number < _NO_ENTRY
        widths = np.diff(self._starts, append=np.uint64(rows))
        self.allowed = rows - int(widths[banned].sum())
        """Rows that no entry bans."""

    def touched(self, row: U64) -> NDArray[np.bool_]:
        """True for each row that an entry names."""
        return np.asarray(self._number[self._piece(row)] < _NO_ENTRY)

    def named(self, first: int, stop: int) -> bool:
        """True if entries name all rows of [first, stop)."""
        low, high = self._piece(np.array([first, stop - 1], dtype=np.uint64))
        return bool((self._number[low : high + 1] < _NO_ENTRY).all())

    def banned(self, row: U64, k: U64, *, listed: bool = True) -> NDArray[np.bool_]:
        """True for each row that sample k must not use. Without `listed`, only entries that begin by k count."""
        piece = self._piece(row)
        if not listed:
            return np.asarray(self._from[piece] <= k)
        place = np.searchsorted(self._listed, k)
        named = np.zeros(len(k), dtype=np.bool_)
        inside = place < len(self._listed)
        named[inside] = self._listed[place[inside]] == k[inside]
        last = np.where(named, self._last[place], -1)
        return np.asarray((self._from[piece] <= k) | (self._number[piece] <= last))

    def _piece(self, row: U64) -> NDArray[np.intp]:
        return np.searchsorted(self._starts, row, side="right") - 1


class Bans:
    """All bans of a plan, by source. A source with bans costs a binary search a sample."""

    def __init__(self, bans: Sequence[Ban], orders: Orders) -> None:
        """`bans` are in the order of the log. Raises DataError for a source or rows that do not exist, and if bans
        leave no row of a source.
        """
        self._orders = orders
        by_source: dict[int, list[tuple[int, Ban]]] = {}
        for number, ban in enumerate(bans):
            if not 0 <= ban.source < len(orders.orders):
                raise DataError(
                    "a ban names a source that the plan does not have",
                    found=ban.source,
                    remedy=f"It has sources 0 to {len(orders.orders) - 1}.",
                )
            rows = orders.orders[ban.source].units.N
            if not ban.rows or any(not 0 <= first < stop <= rows for first, stop in ban.rows):
                raise DataError(
                    f"a ban names rows outside source {ban.source}",
                    found=ban.rows[:3],
                    remedy=f"Rows go from 0 to {rows - 1}; ranges are [first, stop).",
                )
            by_source.setdefault(ban.source, []).append((number, ban))
        self._tables = {source: _Table(entries, orders.orders[source].units.N) for source, entries in by_source.items()}
        for source, table in self._tables.items():
            if not table.allowed:
                raise DataError(
                    f"bans leave no row of source {source}",
                    found=f"{orders.orders[source].units.N} rows banned",
                    remedy="Give the source's weight to the others in a new stage instead.",
                )

    def banned(self, source: int, row: U64, k: U64) -> NDArray[np.bool_]:
        """True for each row of a source that sample k must not use."""
        table = self._tables.get(source)
        return table.banned(row, k) if table else np.zeros(len(row), dtype=np.bool_)

    def named(self, source: int, rows: tuple[int, int]) -> bool:
        """True if entries name every row of [first, stop)."""
        table = self._tables.get(source)
        return table is not None and table.named(*rows)

    def substitute(self, k: U64, source: NDArray[np.intp], position: U64, epoch: U64, row: U64, *, listed: bool) -> U64:
        """Rows of samples after bans: the substitutes of banned rows, and `row` itself for all others. Without
        `listed`, samples that entries list keep their rows until the entry begins.
        """
        for number, table in self._tables.items():
            places = np.flatnonzero(source == number)
            places = places[table.touched(row[places])]
            places = places[table.banned(row[places], k[places], listed=listed)]
            if places.size:
                row = row.copy()
                at = (k[places], position[places], epoch[places], row[places])
                row[places] = self._walk(number, table, *at, listed=listed)
        return row

    def _walk(self, source: int, table: _Table, k: U64, position: U64, epoch: U64, row: U64, *, listed: bool) -> U64:
        rows = np.uint64(self._orders.orders[source].units.N)
        out, start = row.copy(), position - epoch * rows
        left = np.arange(len(k))
        while left.size:
            sources = np.full(len(left), source)
            out[left] = self._orders.following(sources, out[left], epoch[left])
            left = left[table.banned(out[left], k[left], listed=listed)]
            circle = left[out[left] == start[left]]
            start[circle] = (start[circle] + np.uint64(1)) % rows
            out[circle] = start[circle]
        return out
