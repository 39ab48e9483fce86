"""Order of one view: position → row for any epoch, and row → position, both in constant time.

docs/order.md, "Windows and lanes", describes the construction. The code uses its letters: W units a window, L lanes, K
windows, and the function σ from a place of an epoch to a row, a hole or an empty cell.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64, Domain, domain, epoch_key, permute, seed_key, select, stream_key, unpermute
from fmscale.data.order.units import CommitTable, Units, cell_id

ORDER_VERSION = 1
"""Version of this construction; part of every view. Golden vectors: tests/fixtures/order_v1.json."""
WALK = 64
"""Steps of the walk to a row before all walks of the view are taken at once: usual views need one or two."""
MAX_LANES = 1024
"""Most lanes: more than the nodes that will ever share a window."""
Lanes = NDArray[np.uint32]
_LANE_BITS = np.uint64(10)
_ZERO, _ONE = np.array([0], dtype=np.uint64), np.array([1], dtype=np.uint64)
_REVERSED = np.array([int(f"{i:010b}"[::-1], 2) for i in range(MAX_LANES)], dtype=np.uint64)


class Constants(NamedTuple):
    """Numbers of an order: arrays of a single entry or, for several orders, of an entry for each position."""

    rows: U64
    units: U64
    b: U64
    key: U64
    window_rows: U64
    last_window: U64
    lane_bits: U64
    lane_mask: U64
    lane_rows: U64
    lane_left: U64
    lane_right: U64
    last_lane_rows: U64
    last_lane_left: U64
    last_lane_right: U64
    unit_left: U64
    unit_right: U64
    first_unit: U64

    def over_units(self) -> Domain:
        """Domain of the permutation of units."""
        return Domain(self.units, self.unit_left, self.unit_right)

    def over_lane(self, window: U64) -> Domain:
        """Domain of the permutation inside a lane of each window."""
        last = window == self.last_window
        final = Domain(self.last_lane_rows, self.last_lane_left, self.last_lane_right)
        if last.all():
            return final
        regular = Domain(self.lane_rows, self.lane_left, self.lane_right)
        if not last.any():
            return regular
        return Domain(*(np.where(last, b, a) for a, b in zip(regular, final, strict=True)))


class Order:
    """The order of one view under one seed. Takes a few words a commit, whatever the number of rows."""

    def __init__(self, units: Units, seed: int, window: int = 2048) -> None:
        """`window` is W in units, at least 1."""
        self.units = units
        self.window = window
        most = min(MAX_LANES, units.n)
        self.lanes = lanes = min(window & -window, 1 << (most.bit_length() - 1))
        """L, lanes of every window."""
        self.windows = max(1, units.n // window)
        """K, windows of an epoch."""
        last = self.windows - 1
        self.window_rows = window * units.b
        """Cells of every window but the last."""
        regular = domain(self.window_rows // lanes)
        final = domain(-(-(units.n * units.b - last * self.window_rows) // lanes))
        over_units = domain(units.n)
        numbers = (units.N, units.n, units.b, seed_key(seed), self.window_rows, last)
        scalars = np.array([[*numbers, lanes.bit_length() - 1, lanes - 1]], dtype=np.uint64).T
        self.constants = Constants(*[*scalars, *regular, *final, *over_units[1:], _ZERO])

    def position(self, row: U64, epoch: U64 | int) -> U64:
        """Positions of rows, in a single epoch or in an epoch for each row: the inverse of `Orders.rows`."""
        c = self.constants
        x = np.array(row, dtype=np.uint64)
        epochs = np.atleast_1d(np.asarray(epoch, dtype=np.uint64))
        key = epoch_key(c.key, epochs)
        outside = np.arange(x.size)
        while outside.size:
            x[outside] = self._inverse_step(x[outside], key if key.size == 1 else key[outside])
            outside = outside[x[outside] >= c.rows]
        return x + epochs * c.rows

    def windows_of(self, unit: U64, epoch: U64 | int) -> tuple[U64, U64]:
        """First position of the window that reads each unit in an epoch, and the first position after it."""
        c = self.constants
        epochs = np.atleast_1d(np.asarray(epoch, dtype=np.uint64))
        key = stream_key(epoch_key(c.key, epochs), _ZERO)
        place = unpermute(np.asarray(unit, dtype=np.uint64), c.over_units(), key)
        window = np.minimum(place // np.uint64(self.window), c.last_window)
        start = np.minimum(window * c.window_rows, c.rows)
        stop = np.where(window == c.last_window, c.rows, np.minimum(start + c.window_rows, c.rows))
        return start + epochs * c.rows, stop + epochs * c.rows

    def next_use(self, unit: U64, position: int) -> U64:
        """First positions >= `position` at which units may be read: `position` itself inside the unit's window, else
        the start of its window, in this epoch or the next.

        Rows that take the place of a hole (fewer than b a commit, plus L) may be read earlier: this costs a second
        fetch and never causes an error.
        """
        epoch = position // self.units.N
        now = np.uint64(position)
        start, stop = self.windows_of(unit, epoch)
        following, _ = self.windows_of(unit, epoch + 1)
        out: U64 = np.where(stop > now, np.maximum(start, now), following)
        return out

    def _inverse_step(self, row: U64, key: U64) -> U64:
        """x with σ(x) = row."""
        c, units = self.constants, self.units
        cells = c.units * c.b
        unit, offset = units.unit_of(np.minimum(row, cells - _ONE))
        place = unpermute(unit, c.over_units(), stream_key(key, _ZERO))
        z = np.where(row < cells, place * c.b + offset, row)
        window = np.minimum(z // c.window_rows, c.last_window)
        base = window * c.window_rows
        size = c.over_lane(window)
        lane = (z - base) // size.n
        turn = unpermute(z - base - lane * size.n, size, _lane_key(key, window, lane))
        # bitreverse_a is its own inverse.
        step = _REVERSED[lane.astype(np.intp)] >> (_LANE_BITS - c.lane_bits)
        out: U64 = base + (turn << c.lane_bits) + step
        return out


class Orders:
    """Several orders evaluated in one pass, so that a mixture costs as much as a single source."""

    def __init__(self, orders: Sequence[Order]) -> None:
        """`orders` in the sequence of their numbers in `rows`."""
        self.orders = tuple(orders)
        ends = np.cumsum([order.units.n for order in orders], dtype=np.uint64)
        constants: list[Constants] = []
        tables: list[CommitTable] = []
        for order, end in zip(orders, ends, strict=True):
            first, table = end - order.constants.units, order.units.commits
            constants.append(order.constants._replace(first_unit=first))
            tables.append(table._replace(unit_ends=table.unit_ends + first))
        self._table = CommitTable(*(np.concatenate(column) for column in zip(*tables, strict=True)))
        self._constants = Constants(*(np.concatenate(column) for column in zip(*constants, strict=True)))

    def rows(self, source: np.ndarray, positions: U64) -> tuple[U64, Lanes, U64]:
        """(row id, lane uint32, epoch) of positions, each of the order that `source` numbers: position P is number
        P mod N of epoch ⌊P/N⌋. One-dimensional arrays.
        """
        c = self._of(source)
        epoch = positions // c.rows
        key = epoch_key(c.key, epoch)
        if c.key.size == 1 and key.size and (epoch == epoch[0]).all():
            key = key[:1]
        row, lane = _first_return(c, self._table, positions - epoch * c.rows, key)
        return row, lane, epoch

    def following(self, source: np.ndarray, row: U64, epoch: U64) -> U64:
        """The rows to which σ leads from each row, in the given epoch: the walk past banned rows."""
        c = self._of(source)
        return _first_return(c, self._table, row, epoch_key(c.key, epoch))[0]

    def _of(self, source: np.ndarray) -> Constants:
        if len(self.orders) == 1:
            return self._constants
        return Constants(*(column.take(source) for column in self._constants))


def _first_return(c: Constants, table: CommitTable, x: U64, key: U64) -> tuple[U64, Lanes]:
    row, lane = _step(c, table, x, key)
    outside = np.flatnonzero(row >= c.rows)
    for _ in range(WALK):
        if not outside.size:
            break
        part = select(c, outside)
        again, lanes = _step(part, table, row[outside], key if key.size == 1 else key[outside])
        row[outside], lane[outside] = again, lanes
        outside = outside[again >= part.rows]
    for i in outside.tolist():
        part = Constants(*(field if field.size == 1 else field[i : i + 1] for field in c))
        returned, lanes = _returns(
            tuple(int(field[0]) for field in part),
            tuple(column.tobytes() for column in table),
            int(key[0] if key.size == 1 else key[i]),
        )
        hole = int(row[i] - part.rows[0])
        row[i], lane[i] = returned[hole], lanes[hole]
    return row, lane.astype(np.uint32)


@lru_cache(maxsize=16)
def _returns(constants: tuple[int, ...], table: tuple[bytes, ...], key: int) -> tuple[U64, U64]:
    """The first return, with its lane, from each place without a row: a unit of far more cells than the view has rows
    would take as many steps as it has cells, one row after another.
    """
    c = Constants(*(np.array([value], dtype=np.uint64) for value in constants))
    columns = CommitTable(*(np.frombuffer(column, dtype=np.uint64) for column in table))
    rows, places = int(c.rows[0]), int((c.last_window * c.window_rows + (c.last_lane_rows << c.lane_bits))[0])
    row, lane = _step(c, columns, np.arange(rows, places, dtype=np.uint64), np.array([key], dtype=np.uint64))
    for _ in range(places.bit_length()):
        out = np.flatnonzero(row >= c.rows)
        further = (row[out] - c.rows).astype(np.intp)
        lane[out], row[out] = lane[further], row[further]
    return row, lane


def _step(c: Constants, table: CommitTable, x: U64, key: U64) -> tuple[U64, U64]:
    """(σ(x), lane of x)."""
    window = np.minimum(x // c.window_rows, c.last_window)
    base = window * c.window_rows
    r = x - base
    lane = _REVERSED[(r & c.lane_mask).astype(np.intp)] >> (_LANE_BITS - c.lane_bits)
    size = c.over_lane(window)
    z = permute(r >> c.lane_bits, size, _lane_key(key, window, lane))
    z += lane * size.n
    z += base
    place = z // c.b
    offset = z - place * c.b
    inside = place < c.units
    every = bool(inside.all())
    unit = permute(place if every else np.minimum(place, c.units - _ONE), c.over_units(), stream_key(key, _ZERO))
    row = cell_id(table, c.first_unit, c.b, c.rows, unit, offset)
    return row if every else np.where(inside, row, z), lane


def _lane_key(key: U64, window: U64, lane: U64) -> U64:
    return stream_key(key, _ONE + (window << _LANE_BITS) + lane)
