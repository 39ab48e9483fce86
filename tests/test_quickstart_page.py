"""The report of a quickstart as a page: its charts, what it shows, narrow screens."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fmscale.quickstart.page import render
from fmscale.report.charts import Mark, dots_by_row, line_chart, ticks
from tests.test_quickstart import records, report


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.00031), (2.3, 9.1), (0, 48_211), (5, 5)])
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert all(len(f"{tick:g}") <= 7 for tick in found)


def test_a_chart_is_svg_with_a_gap_where_a_value_is_not_finite_and_a_line_where_the_run_moved() -> None:
    svg = line_chart([1, 2, 3, 4], [4.0, float("nan"), 2.0, 1.0], label="loss", marks=[Mark(x=3, label="here")])
    root = ET.fromstring(svg)
    (path,) = root.iter("path")
    assert path.get("d", "").count("M") == 2
    assert [line.text for line in root.iter("tspan")] == ["here"]


def test_text_of_a_chart_keeps_its_size_and_places_follow_the_width() -> None:
    """A viewBox scales no text; all else is placed by percentages within the drawing."""
    charts = [
        line_chart([1, 2], [4.0, 2.0], label="loss", marks=[Mark(x=2, label="a: b, c")]),
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


def test_the_page_fits_a_narrow_screen() -> None:
    """No width of the page is fixed above 420 pixels where the screen is narrower."""
    page = render(report(), records(), records()[:5])
    wide, _, narrow = page.partition("@media (max-width: 640px)")
    assert "width=device-width" in wide
    flexible = re.sub(r"max-width: \d+px|minmax\(min\(100%, \d+px\), 1fr\)", "", page)
    sizes = re.findall(r"(?:width|columns|flex|padding|margin)[^;:{}]*:([^;}]*)", flexible)
    assert max(int(size) for value in sizes for size in re.findall(r"(\d+)px", value)) <= 260
    assert ".row { grid-template-columns: minmax(0, 1fr)" in narrow
    assert re.findall(r" width=['\"]?\d+[\d.]*(?!%)['\" >]", page) == []


def test_the_page_is_one_file_without_script_or_request_and_shows_what_came_out() -> None:
    page = render(report(), records(), records()[:5])
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;script&gt;alert(1)" in page
    assert page.count('class="chart lines"') == 4
    assert page.count('class="row"') == 1 + len(report()["documents"])
    assert re.findall(r"<tspan[^>]*>([^<]*)", page) == ["resumed:", "2 → 1 ranks,", "stage 2 → 3"] * 4
    assert "a&lt;b&gt;.py" in page
    assert page.count("class='ok'") == 5
    assert "commit 0f0f" in page


def test_a_loss_chart_has_the_unbroken_run_below(tmp_path: Path) -> None:
    page = render(report(), records(), records()[:5])
    assert page.count('class="under"') == 1
    assert page.index('class="under"') < page.index('class="line"'), "drawn over it"
