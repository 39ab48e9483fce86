"""Charts of a report: round ticks, gaps, marks, and text that keeps its size."""

import math
import xml.etree.ElementTree as ET

import pytest

from fmscale.report.charts import (
    MOST_CELLS,
    MOST_POINTS,
    Line,
    dots_by_row,
    heat_map,
    line_chart,
    stacked_bar,
    thinned,
    ticks,
)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.00031), (2.3, 9.1), (0, 48_211), (5, 5)])
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert all(len(f"{tick:g}") <= 7 for tick in found)


def test_a_chart_is_svg_with_a_gap_where_a_value_is_not_finite_and_a_line_where_the_run_moved() -> None:
    svg = line_chart([Line(xs=[1, 2, 3, 4], ys=[4.0, math.nan, 2.0, 1.0])], label="loss", marks=[(3, "here")])
    root = ET.fromstring(svg)
    (path,) = root.iter("path")
    assert path.get("d", "").count("M") == 2
    assert [line.text for line in root.iter("tspan")] == ["here"]


def test_text_of_a_chart_keeps_its_size_and_places_follow_the_width() -> None:
    """A viewBox scales no text; all else is placed by percentages within the drawing."""
    line = Line(xs=[1, 2], ys=[4.0, 2.0])
    charts = [
        line_chart([line, Line(xs=[2, 9], ys=[3.0, 3.0])], label="loss", marks=[(2, "a: b, c")]),
        line_chart([line], label="blocking", stems=True),
        dots_by_row([("a", [("gzip", 2.0), ("xz", 14.0)])], unit="bits", cap=6.0),
        heat_map([[0.0, 1.0], [2.0, math.nan]], [1, 2], label="wait"),
        stacked_bar([("p0", "a", 1.0), ("p1", "b", 3.0)], label="time"),
    ]
    for root in map(ET.fromstring, charts):
        for scaled in (one for one in root.iter("svg") if one.get("viewBox")):
            assert {one.tag for one in scaled.iter()} == {"svg", "path"}
        across = [one.get(key) for one in root.iter() for key in ("x", "x1", "x2", "cx", "width")]
        shares = [float(value[:-1]) for value in across if value and value.endswith("%")]
        assert len(shares) >= 4
        assert all(0 <= share <= 100 for share in shares)
        assert {value for value in across if value and not value.endswith("%")} <= {"0", "-8"}


def test_a_long_line_keeps_its_extremes_and_gaps_and_a_short_line_all() -> None:
    ys = [float(i % 7) for i in range(100_000)]
    ys[50_000], ys[60_000], ys[70_001] = 99.0, -99.0, math.nan
    xs, kept = thinned(range(100_000), ys)
    assert len(xs) <= MOST_POINTS
    assert xs == sorted(xs)
    assert [kept[xs.index(x)] for x in (50_000, 60_000)] == [99.0, -99.0]
    assert sum(map(math.isnan, kept)) == 1
    assert thinned([1, 2], [3.0, math.nan])[0] == [1, 2]


def test_a_heat_map_of_many_ranks_and_steps_shows_the_one_that_waits() -> None:
    """1,000 ranks, 500 columns: the slow cell is in a group of its own strength."""
    rows = [[1.0] * 500 for _ in range(1000)]
    rows[640][250] = 4.0
    root = ET.fromstring(heat_map(rows, range(500), label="wait"))
    cells = [one for one in root.iter("path") if one.get("class") == "cell"]
    assert len(cells) == MOST_CELLS + 2, "a path for each row, and the slow cell parts its row in three"
    assert {one.get("fill-opacity") for one in cells} == {"0.25", "1.00"}
    assert [one.text for one in root.iter("text") if one.get("x") == "-8"] == ["0", "999"]


def test_parts_of_a_bar_fill_it_in_order() -> None:
    root = ET.fromstring(stacked_bar([("p0", "a", 1.0), ("p1", "b", 3.0), ("p2", "c", 0.0)], label="time"))
    assert [(one.get("x"), one.get("width")) for one in root.iter("rect")] == [
        ("0.00%", "25.00%"),
        ("25.00%", "75.00%"),
        ("100.00%", "0.00%"),
    ]
