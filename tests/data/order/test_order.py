"""The order: every row once an epoch, windows of few units, lanes apart, the same for ever."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.order import order as room
from fmscale.data.order.order import WALK, Order, Orders
from fmscale.data.order.units import Units

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "order_v1.json").read_text())
B = 4


def rows_of(order: Order, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row, lane, _ = Orders([order]).rows(np.zeros(len(positions), dtype=np.intp), positions)
    return row, lane


def epoch_of(order: Order, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positions = np.arange(order.units.N, dtype=np.uint64) + np.uint64(epoch * order.units.N)
    return positions, *rows_of(order, positions)


def check_epoch(order: Order, epoch: int) -> None:
    positions, rows, _ = epoch_of(order, epoch)
    assert np.array_equal(np.sort(rows), np.arange(order.units.N))
    assert np.array_equal(order.position(rows, epoch), positions)


@pytest.mark.parametrize(
    "rows",
    [
        *((n,) for n in (1, 7, B - 1, B, B + 1, 10**5 + 3)),
        (1, 1, 1),
        (7, 0, B, 1),
        (50_000, 3, 49_998, 2),
        (B + 1, B - 1, B, 7, 100),
    ],
)
@pytest.mark.parametrize("window", [1, 3, 64, 2048])
def test_every_row_once_an_epoch(rows: tuple[int, ...], window: int) -> None:
    order = Order(Units(rows, B), 5, window)
    for epoch in (0, 1, 10**9):
        check_epoch(order, epoch)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=6).filter(any),
    st.integers(1, 40),
    st.integers(1, 100),
    st.integers(0, 2**64 - 1),
)
def test_every_row_once_for_any_view(rows: list[int], b: int, window: int, seed: int) -> None:
    check_epoch(Order(Units(rows, b), seed, window), 2)


@pytest.mark.parametrize("rows", [(10**12,), (10**11, 10**12 - 7, 3), tuple([10**9 + 17] * 1000)])
def test_inverse_of_huge_views(rows: tuple[int, ...]) -> None:
    order = Order(Units(rows, 32), 9)
    near = np.arange(-500, 500)
    inside = np.random.default_rng(0).integers(0, order.units.N, 20_000)
    ends = np.concatenate((np.arange(1000), order.units.N - 1000 + np.arange(1000), near + order.units.N // 2))
    for epoch in (0, 3):
        p = np.unique(np.concatenate((inside, ends))).astype(np.uint64)
        rows_, _ = rows_of(order, p + np.uint64(epoch * order.units.N))
        assert len(np.unique(rows_)) == len(p)
        assert (rows_ < order.units.N).all()
        assert np.array_equal(order.position(rows_, epoch), p + np.uint64(epoch * order.units.N))


def test_a_window_reads_few_units_and_each_lane_its_own() -> None:
    units = Units([256 * 10 * B], B)
    order = Order(units, 1, 256)
    _, rows, lanes = epoch_of(order, 0)
    unit = units.unit_of(rows)[0]
    assert (order.lanes, order.windows) == (256, 10)
    for w in range(10):
        here = slice(w * 256 * B, (w + 1) * 256 * B)
        assert len(np.unique(unit[here])) == 256
        pairs = np.unique(np.stack((lanes[here], unit[here])), axis=1)
        assert pairs.shape[1] == 256, "each unit of a window in one lane"
        start, stop = order.windows_of(unit[here], 0)
        assert (start == w * 256 * B).all()
        assert (stop == (w + 1) * 256 * B).all()
        # Any 256 rows in a row come from 256 lanes.
        assert len(np.unique(lanes[here][:256])) == 256


def test_neighbours_in_the_data_are_far_apart_in_a_batch() -> None:
    """Bit reversal: any 2^i samples in a row are spread over all lanes, not over neighbouring lanes."""
    order = Order(Units([2048 * B], B), 1, 2048)
    lanes = epoch_of(order, 0)[2]
    assert np.array_equal(np.sort(lanes[:8]), np.arange(8) * 128)


def test_lane_counts() -> None:
    assert Order(Units([1], 1), 0).lanes == 1
    assert Order(Units([7 * B], B), 0).lanes == 4
    assert Order(Units([10**9], B), 0).lanes == 1024
    assert Order(Units([10**9], B), 0, 96).lanes == 32
    last = Order(Units([B * (3 * 2048 - 1)], B), 0)
    assert last.windows == 2, "the last window takes what is left over"


def test_epochs_and_seeds_differ() -> None:
    units = Units([1000], B)
    base = epoch_of(Order(units, 1, 64), 0)[1]
    for other in (epoch_of(Order(units, 1, 64), 1)[1], epoch_of(Order(units, 2, 64), 0)[1]):
        assert (base == other).mean() < 0.02


def test_next_use_is_when_a_unit_is_read_again() -> None:
    units = Units([64 * 12 * B], B)
    order = Order(units, 3, 64)
    number = np.arange(units.n, dtype=np.uint64)
    read: dict[int, list[int]] = {}
    for epoch in (0, 1):
        positions, rows, _ = epoch_of(order, epoch)
        for p, u in zip(positions.tolist(), units.unit_of(rows)[0].tolist(), strict=True):
            read.setdefault(u, []).append(p)
    now = 5 * 64 * B + 17
    use = order.next_use(number, now).astype(int)
    for u in number.tolist():
        upcoming = min(p for p in read[u] if p >= now)
        if use[u] == now:
            assert any(5 * 64 * B <= p < 6 * 64 * B for p in read[u])
        else:
            assert use[u] % (64 * B) == 0
            assert use[u] <= upcoming < use[u] + 64 * B


def test_several_orders_in_one_pass() -> None:
    orders = [
        Order(Units(rows, b), seed, window)
        for rows, b, seed, window in (
            ((5, 100, 3), 4, 1, 8),
            ((10**6,), 32, 2, 2048),
            ((10**12, 77), 16, 3, 2048),
            ((1,), 1, 4, 2048),
        )
    ]
    rng = np.random.default_rng(1)
    source = rng.integers(0, 4, 5000)
    position = rng.integers(0, 10**6, 5000).astype(np.uint64)
    row, lane, epoch = Orders(orders).rows(source, position)
    for number, order in enumerate(orders):
        mine = source == number
        expected = rows_of(order, position[mine])
        assert np.array_equal(row[mine], expected[0])
        assert np.array_equal(lane[mine], expected[1])
        assert np.array_equal(epoch[mine], position[mine] // np.uint64(order.units.N))


def test_following_rows_are_the_walk_of_sigma() -> None:
    order = Order(Units([100, 33], 8), 4, 4)
    orders, at = Orders([order]), np.zeros(133, dtype=np.intp)
    rows = epoch_of(order, 2)[1]
    everywhere = np.arange(133, dtype=np.uint64)
    assert np.array_equal(orders.following(at, everywhere, np.full(133, 2, dtype=np.uint64)), rows)


@pytest.mark.parametrize("rows", [10**6, 10**9, 10**12])
def test_opening_holds_nothing_that_grows(rows: int) -> None:
    tracemalloc.start()
    order = Order(Units([rows], 32), 1)
    rows_of(order, np.arange(64, dtype=np.uint64))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 64_000
    assert peak < 256_000


def test_shuffle_of_data_sorted_by_class() -> None:
    """Entropy of classes in a batch with a window of 2048 units, against a full shuffle (W6)."""
    classes, batch, units, b = 64, 512, 8192, 16
    order = {w: Order(Units([units * b], b), 11, w) for w in (32, 2048)}
    label = np.arange(units * b) * classes // (units * b)

    def entropy(rows: np.ndarray) -> float:
        counts = np.stack([np.bincount(label[part], minlength=classes) for part in rows.reshape(-1, batch)])
        p = counts / batch
        return float(-(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(axis=1).mean())

    full = entropy(np.random.default_rng(0).permutation(units * b))
    ratio = {w: entropy(epoch_of(o, 0)[1].astype(int)) / full for w, o in order.items()}
    assert ratio[2048] >= 0.99
    assert ratio[32] < 0.8, "a small window must show"
    rows = label[epoch_of(order[2048], 0)[1].astype(int)].astype(float)
    lag = np.corrcoef(rows[:-1], rows[1:])[0, 1]
    assert abs(lag) <= 0.1


@pytest.mark.parametrize("case", GOLDEN["order"], ids=lambda case: str(case["rows"]))
def test_golden_orders(case: dict) -> None:  # type: ignore[type-arg]
    order = Order(Units(case["rows"], case["rows_per_unit"]), case["seed"], case["window"])
    rows, lanes = rows_of(order, np.array(case["positions"], dtype=np.uint64))
    assert rows.tolist() == case["row"]
    assert lanes.tolist() == case["lane"]


def test_a_unit_of_far_more_cells_than_rows_is_walked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same order in a bounded number of steps: alone, 12 rows in units of 3,856 took 46,627 steps a row."""
    taken: list[int] = []
    step = room._step

    def counted(*arguments: Any) -> Any:
        taken.append(1)
        return step(*arguments)

    monkeypatch.setattr(room, "_step", counted)

    def rows(most: int) -> tuple[Any, Any, int]:
        monkeypatch.setattr(room, "WALK", most)
        orders = Orders([Order(Units((9, 3), 2000), seed=2), Order(Units((100,), 16), seed=1)])
        taken.clear()
        row, lane, _ = orders.rows(np.repeat([0, 1], 24), np.tile(np.arange(24, dtype=np.uint64), 2))
        return row.tolist(), lane.tolist(), len(taken)

    alone, together = rows(10**9), rows(WALK)
    assert alone[:2] == together[:2]
    assert alone[2] > 10 * WALK
    assert together[2] < WALK + 5
