"""Rows of a view in units of b rows, and the numbering that makes every commit end in a whole unit.

docs/order.md, "Units and holes", explains the numbering and letters: n units of b cells, N rows, H(u) holes before u.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fmscale.data.order.feistel import MAX_DOMAIN, U64
from fmscale.errors import DataError

_FIRST = np.zeros(1, dtype=np.int64)


class CommitTable(NamedTuple):
    """Columns of the commits with rows; for several sources, one source after another."""

    unit_ends: U64
    """First unit after the commit, counted from the first source on."""
    holes_before: U64
    """H at the first unit of the commit, within its source."""
    last_rows: U64
    """Rows of the commit's last unit."""


def cell_id(table: CommitTable, first_unit: U64, b: U64, rows: U64, unit: U64, offset: U64) -> U64:
    """Ids of cells (unit, offset). `first_unit` is the source's first unit in the table, `rows` its N; both and b have
    a single entry, or an entry for each cell.
    """
    id: U64 = unit * b
    id += offset
    after = unit + first_unit
    after += np.uint64(1)
    place = _FIRST if len(table.unit_ends) == 1 else np.searchsorted(table.unit_ends, after, side="left")
    id -= table.holes_before[place]
    # Only the last unit of a commit has holes: one unit in millions in a large view.
    last = np.flatnonzero(after == table.unit_ends[place])
    if last.size:
        at = np.broadcast_to(place, id.shape)[last]
        rows = rows if rows.size == 1 else rows[last]
        offset = offset[last]
        filled = table.last_rows[at]
        id[last] = np.where(offset < filled, id[last], rows + table.holes_before[at] + offset - filled)
    return id


class Units:
    """The units of one view."""

    def __init__(self, rows_per_commit: Sequence[int], rows_per_unit: int) -> None:
        """`rows_per_commit`: 0 or more rows for each commit, in commit order. `rows_per_unit`: b, 1 or more.

        Raises DataError if no commit has a row, or if n · b exceeds 2^62.
        """
        self.rows_per_commit = tuple(int(rows) for rows in rows_per_commit)
        """Rows of each commit."""
        self.b = int(rows_per_unit)
        """Rows of a full unit."""
        self._filled = np.flatnonzero(self.rows_per_commit)
        # Python integers, because the check of the size comes below.
        rows = np.array(self.rows_per_commit, dtype=object)[self._filled]
        units = -(-rows // self.b)
        self.N = int(rows.sum())
        self.n = int(units.sum())
        if not self.N:
            raise DataError(
                "the view has no row",
                found=f"{len(self.rows_per_commit)} commits",
                remedy="Use a shorter sequence_length, or ingest more data.",
            )
        if self.n * self.b > MAX_DOMAIN:
            raise DataError("the view has too many rows", found=self.N, remedy="At most 2^62 are possible.")
        unit_ends, row_ends = units.cumsum(), rows.cumsum()
        holes = (unit_ends - units) * self.b - (row_ends - rows)
        columns = (unit_ends, holes, (rows - 1) % self.b + 1)
        self.commits = CommitTable(*(column.astype(np.uint64) for column in columns))
        """The commits that have rows."""
        self.row_ends = row_ends.astype(np.uint64)
        """First row after each commit with rows."""

    def span(self, unit: int) -> tuple[int, int, int]:
        """A unit's commit (index into `rows_per_commit`), its first row inside that commit and its number of rows.

        Plain integers, because every read of a unit calls this.
        """
        ends = self.commits.unit_ends
        place = int(ends.searchsorted(np.uint64(unit), side="right"))
        row = (unit - (int(ends[place - 1]) if place else 0)) * self.b
        commit = int(self._filled[place])
        return commit, row, min(self.b, self.rows_per_commit[commit] - row)

    def first_row(self, commit: int) -> int:
        """Id of the first row of a commit; for a commit without rows, id of the next commit's first row."""
        place = int(np.searchsorted(self._filled, commit))
        return int(self.row_ends[place - 1]) if place else 0

    def id(self, unit: U64, offset: U64) -> U64:
        """Id of the cell `offset` (0 <= offset < b) of `unit` (< n): below N a row, else a hole."""
        first, b, rows = (np.array([number], dtype=np.uint64) for number in (0, self.b, self.N))
        cells = np.asarray(unit, np.uint64), np.asarray(offset, np.uint64)
        return cell_id(self.commits, first, b, rows, *cells)

    def unit_of(self, row: U64) -> tuple[U64, U64]:
        """(unit, offset) of ids below n · b, rows and holes alike: the inverse of `id`."""
        row, b = np.asarray(row, dtype=np.uint64), np.uint64(self.b)
        place = np.searchsorted(self.row_ends, row, side="right")
        hole = place == len(self.row_ends)
        if not hole.any():
            cell = row + self.commits.holes_before[place]
            unit = cell // b
            return unit, cell - unit * b
        number = row - np.uint64(self.N)
        # Holes lie at the ends of commits: hole h belongs to the last commit with holes_before <= h.
        owner = np.searchsorted(self.commits.holes_before, number, side="right") - 1
        place = np.where(hole, owner, place)
        holes = self.commits.holes_before[place]
        cell = row + holes
        unit = np.where(hole, self.commits.unit_ends[place] - np.uint64(1), cell // b)
        offset = np.where(hole, number - holes + self.commits.last_rows[place], cell % b)
        return unit, offset
