"""Charts of a report: round ticks, gaps, marks, and text that keeps its size."""

import xml.etree.ElementTree as ET

import pytest

from fmscale.report.charts import dots_by_row, line_chart, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.00031), (2.3, 9.1), (0, 48_211), (5, 5)])
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert all(len(f"{tick:g}") <= 7 for tick in found)


def test_a_chart_is_svg_with_a_gap_where_a_value_is_not_finite_and_a_line_where_the_run_moved() -> None:
    svg = line_chart([1, 2, 3, 4], [4.0, float("nan"), 2.0, 1.0], label="loss", marks=[(3, "here")])
    root = ET.fromstring(svg)
    (path,) = root.iter("path")
    assert path.get("d", "").count("M") == 2
    assert [line.text for line in root.iter("tspan")] == ["here"]


def test_text_of_a_chart_keeps_its_size_and_places_follow_the_width() -> None:
    """A viewBox scales no text; all else is placed by percentages within the drawing."""
    charts = [
        line_chart([1, 2], [4.0, 2.0], label="loss", marks=[(2, "a: b, c")]),
        line_chart([1, 2], [4.0, 2.0], label="blocking", stems=True),
        dots_by_row([("a", [("gzip", 2.0), ("xz", 14.0)])], unit="bits", cap=6.0),
    ]
    for root in map(ET.fromstring, charts):
        for scaled in (one for one in root.iter("svg") if one.get("viewBox")):
            assert [one.tag for one in scaled.iter()] == ["svg", "path"]
        across = [one.get(key) for one in root.iter() for key in ("x", "x1", "x2", "cx", "width")]
        shares = [float(value[:-1]) for value in across if value and value.endswith("%")]
        assert len(shares) >= 5
        assert all(0 <= share <= 100 for share in shares)
        assert {value for value in across if value and not value.endswith("%")} <= {"0", "-8"}
