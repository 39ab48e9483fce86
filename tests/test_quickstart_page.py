"""The report of a quickstart as a page: its content, narrow screens."""

import json
import re
from pathlib import Path

from fmscale.quickstart.life.page import ASKED
from fmscale.quickstart.life.page import render as life
from fmscale.quickstart.page import render
from tests.test_quickstart import records, report


def test_the_page_fits_a_narrow_screen() -> None:
    """On narrower screens no width of the page is fixed above 420 pixels."""
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


def test_each_share_of_the_life_of_a_model_names_its_column_on_a_narrow_screen() -> None:
    found = json.loads((Path(__file__).parent.parent / "docs/quickstart/life.json").read_text())
    page = life(found, {})
    _, _, narrow = page.partition("@media (max-width: 640px)")
    assert "content: attr(data-label)" in narrow
    for title in ASKED.values():
        assert page.count(f"<td data-label='{title}'>") == len(found["accuracy"])
