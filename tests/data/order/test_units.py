"""Units: every row and every hole has one id, whatever the commits' sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.order.units import Units
from fmscale.errors import DataError

commits = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)


@settings(max_examples=150, deadline=None)
@given(commits, st.integers(1, 9))
def test_rows_are_numbered_in_commit_order_and_holes_after_them(rows: list[int], b: int) -> None:
    units = Units(rows, b)
    expected, unit = {}, 0
    row, hole = 0, sum(rows)
    for count in rows:
        for first in range(0, count, b):
            for offset in range(b):
                if first + offset < count:
                    expected[unit, offset], row = row, row + 1
                else:
                    expected[unit, offset], hole = hole, hole + 1
            unit += 1
    assert (units.N, units.n) == (sum(rows), unit)
    cells = np.array(sorted(expected), dtype=np.uint64)
    ids = units.id(cells[:, 0], cells[:, 1])
    assert ids.tolist() == [expected[tuple(cell)] for cell in cells.tolist()]
    back = units.unit_of(ids)
    assert np.array_equal(np.stack(back, axis=1), cells)


@settings(max_examples=100, deadline=None)
@given(commits, st.integers(1, 9))
def test_units_and_their_commits(rows: list[int], b: int) -> None:
    units = Units(rows, b)
    expected = [
        (commit, start, min(b, count - start)) for commit, count in enumerate(rows) for start in range(0, count, b)
    ]
    assert [units.span(unit) for unit in range(units.n)] == expected
    before = np.cumsum([0, *rows])
    assert [units.first_row(commit) for commit in range(len(rows))] == before[:-1].tolist()


def test_memory_grows_with_commits_only() -> None:
    def table_bytes(rows: list[int]) -> int:
        units = Units(rows, 32)
        return sum(column.nbytes for column in (*units.commits, units.row_ends, units._filled))

    assert table_bytes([10**6]) == table_bytes([10**12])
    assert table_bytes([10**6] * 1000) < 1000 * 64


@pytest.mark.parametrize("rows", [[], [0], [0, 0], [2**62 + 1]])
def test_views_without_rows_or_with_too_many(rows: list[int]) -> None:
    with pytest.raises(DataError):
        Units(rows, 4)
