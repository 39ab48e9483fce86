"""The page of runs: one file with all of its parts, read in a real browser at two widths; its charts as PNGs."""

import re
import struct
import xml.etree.ElementTree as ET
from base64 import b64decode, b64encode
from itertools import product
from pathlib import Path

import pytest

from fmscale.errors import ConfigError
from fmscale.report.png import WIDTH, draw
from fmscale.report.runs import charts, render
from fmscale.train.account import PARTS, read_account
from tests.helpers.browser import CHROMIUM, browser
from tests.helpers.told_runs import killed_and_resumed, started, step, write_records

drawn = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
KEYS = ["loss", "throughput", "data_stall", "ckpt_blocking", "ckpt_lag", "ranks_seconds", "ranks_data_stall", "goodput"]

DRAWN = ["loss", "ranks_data_stall", "goodput"]
"""A chart of each kind."""


def test_a_page_is_one_file_with_every_chart_and_what_happened(tmp_path: Path) -> None:
    account = read_account(killed_and_resumed(tmp_path / "a<b>"))
    page = render([account])
    assert "<script" not in page
    assert re.findall(r"(?:src|href|url)\s*[=(]|https?:|@import", page) == []
    assert "a<b>" not in page
    assert "a&lt;b&gt;" in page
    assert [chart.key for chart in charts([account])] == KEYS
    for chart in charts([account]):
        ET.fromstring(f"<p>{chart.html.replace('&', '')}</p>")
        assert chart.html in page
    for name, meaning in PARTS.items():
        assert f"<tr><th>{name}</th>" in page
        assert meaning in page
    assert "from step 2 of a&lt;b&gt;, 2 → 1 ranks; steps taken again: 2" in page
    assert "not known" in page, "a CPU has no peak, and so no MFU"
    assert page.count("resumed:") >= 4, "the resume is marked in the charts"
    assert "the strongest is 0.2 s, on rank 1 at step 2" in page
    assert page.count("line dashed") == 1


def test_mfu_is_shown_where_the_peak_is_known_with_its_numbers(tmp_path: Path) -> None:
    known = started(9.0, device="NVIDIA H200", flops_per_token=6e9, peak_flops=989e12)
    account = read_account(write_records(tmp_path, known, step(1, 11.0, mfu=0.41)))
    assert "mfu" in [chart.key for chart in charts([account])]
    assert "6e+09 FLOPs a token; the peak of NVIDIA H200 is 989 TFLOP/s" in render([account])
    assert "41.0%" in render([account])


def test_runs_side_by_side_share_the_charts_in_colours_of_their_own(tmp_path: Path) -> None:
    accounts = [read_account(killed_and_resumed(tmp_path / name, loss)) for name, loss in (("one", 0.0), ("two", 0.5))]
    found = {chart.key: chart.html for chart in charts(accounts)}
    assert re.findall(r'class="(line[^"]*)"', found["loss"])[:4] == [
        "line s0",
        "line dashed s0",
        "line s1",
        "line dashed s1",
    ]
    assert found["goodput"].count("<svg") == 2
    page = render(accounts)
    assert page.count("<td data-label='two'>") == len(PARTS) + 7
    assert "Events of one" in page
    assert "Events of two" in page


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    page = render([read_account(write_records(tmp_path, started(9.0)))])
    assert "no step yet" in page


OVERFLOW = """(() => {
  const wide = [...document.querySelectorAll('main *')].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
  });
  const shown = wide.map((one) => one.tagName + '.' + one.getAttribute('class') + ' ' + one.textContent.slice(0, 40));
  return [document.documentElement.scrollWidth - innerWidth, shown];
})()"""
SMALLEST = """Math.min(...[...document.querySelectorAll('main *')]
  .filter((one) => one.childNodes.length === 1 && one.firstChild.nodeType === 3 && one.getBoundingClientRect().width)
  .map((one) => parseFloat(getComputedStyle(one).fontSize)))"""
COLOURS = """new Promise((done) => {
  const image = new Image();
  image.onload = () => {
    const canvas = new OffscreenCanvas(image.width, image.height), all = {};
    canvas.getContext('2d').drawImage(image, 0, 0);
    const data = canvas.getContext('2d').getImageData(0, 0, image.width, image.height).data;
    for (let i = 0; i < data.length; i += 4) {
      const colour = data.slice(i, i + 3).join();
      all[colour] = (all[colour] || 0) + 1;
    }
    done(all);
  };
  image.src = 'data:image/png;base64,%s';
})"""
BLUE, RED = "37,99,201", "179,38,30"
GROUNDS = {"light": "rgb(247, 247, 245)", "dark": "rgb(20, 22, 26)"}


@pytest.mark.slow
@drawn
def test_in_a_browser_nothing_leaves_the_page_at_either_width_on_light_or_dark(tmp_path: Path) -> None:
    """The screenshots lie in the test's folder: look at them after a change of the look."""
    accounts = [read_account(killed_and_resumed(tmp_path / name, loss)) for name, loss in (("one", 0.0), ("two", 0.5))]
    with browser(tmp_path / "profile") as page:
        for shown, width, scheme in product((accounts[:1], accounts), (1280, 420), GROUNDS):
            name = f"report-{len(shown)}-{width}-{scheme}"
            file = tmp_path / f"{name}.html"
            file.write_text(render(shown), encoding="utf-8")
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            page.tell("Emulation.setDeviceMetricsOverride", **size)
            page.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.tell("Emulation.setScrollbarsHidden", hidden=True)
            page.tell("Page.navigate", url=file.as_uri())
            page.until(f"location.href.endsWith('{file.name}') && document.readyState === 'complete'")
            assert page.value("innerWidth") == width
            assert page.value(OVERFLOW) == [0, []]
            assert page.value(SMALLEST) >= 11
            assert page.value("getComputedStyle(document.body).backgroundColor") == GROUNDS[scheme]
            height = page.value("document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            taken = page.tell("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
            (tmp_path / f"{name}.png").write_bytes(b64decode(taken["data"]))
        assert page.faults == []


@pytest.mark.slow
@drawn
def test_a_chart_becomes_a_png_of_its_own(tmp_path: Path) -> None:
    some = [chart for chart in charts([read_account(killed_and_resumed(tmp_path / "run"))]) if chart.key in DRAWN]
    paths = draw(some, tmp_path / "charts")
    assert [path.name for path in paths] == [f"{key}.png" for key in DRAWN]
    with browser(tmp_path / "profile") as page:
        for path, colour, least in zip(paths, (BLUE, BLUE, RED), (500, 10_000, 10_000), strict=True):
            data = path.read_bytes()
            width, height = struct.unpack(">II", data[16:24])
            assert width == 2 * WIDTH
            assert 200 < height < 1000
            # The drawing is there, and not its legend alone: a window is lower than it says.
            found = page.value(COLOURS % b64encode(data).decode())
            assert found.get(colour, 0) > least


def test_pngs_without_a_chromium_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="headless Chromium") as caught:
        draw([], tmp_path / "charts")
    assert "apt-get install chromium" in caught.value.remedy
    assert not (tmp_path / "charts").exists()
